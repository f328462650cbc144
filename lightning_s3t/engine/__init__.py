"""Building one unit: an ordinary Lightning fit from a pristine state."""
