"""Serving: the stand-ins of every shard's survivor, their passes through one network, and one answer out of several."""
