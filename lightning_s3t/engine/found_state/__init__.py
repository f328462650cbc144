"""The state of the script's objects that a fit finds, and its changes since: digests by path."""
