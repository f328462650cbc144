"""Ledgers: the protocol, and the databases that keep one."""
