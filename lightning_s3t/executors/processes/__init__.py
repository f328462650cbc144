"""Units in separate processes: their messages, the servers that fork them, and the fit that distributes them."""
