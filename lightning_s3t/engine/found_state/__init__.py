"""What a fit finds in the script's objects, and what has moved since: digests by path."""
