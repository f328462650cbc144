"""Files on disk: durable writes, locks, temporary folders, and the journal's lines."""
