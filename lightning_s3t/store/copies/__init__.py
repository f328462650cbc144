"""Copies: of a whole store, of a backup in a drill, and of units that were exported."""
