"""Answers from a store: each shard's best survivor, their passes through one network, and one answer out of several."""
