"""Benchmarks: not tests. Each compares two things in one run, prints a ratio, and fails below its mark."""
