"""What remains of given sequences after requests: expected, simulated, and for how long."""
