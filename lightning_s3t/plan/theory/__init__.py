"""What requests leave of given sequences: expected, simulated, and for how long."""
