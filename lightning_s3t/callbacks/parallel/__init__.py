"""Several units at the same time: processes that share one backbone, and a scheduler that gives them units."""
