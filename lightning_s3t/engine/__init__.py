"""How one unit is built: an ordinary Lightning fit from a pristine state, and all that it needs and leaves."""
