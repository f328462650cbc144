"""The cases, a file for each environment and kind of software."""
