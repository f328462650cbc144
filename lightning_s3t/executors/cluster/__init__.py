"""Units on the machines of a Ray cluster: which machines may train, what runs there, and how the fit sees it."""
