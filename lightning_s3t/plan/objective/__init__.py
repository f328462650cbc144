"""The objective of the planner `optimal`: its landscapes, bounds and proven optimum."""
