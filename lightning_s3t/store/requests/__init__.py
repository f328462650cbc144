"""Requests: what they change, how they are erased, journaled, scheduled, and awaited by replicas."""
