"""The planners: each returns the sequences for a budget."""
