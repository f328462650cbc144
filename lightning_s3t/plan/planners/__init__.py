"""The planners: each gives the sequences of a budget."""
