"""Units in processes of their own: what they are sent, what forks them, and the fit that gives them out."""
