"""Closed-form heads: rows of integer features, and the sums that a head is solved from."""
