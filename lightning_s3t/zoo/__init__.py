"""Examples to start from, which use only the public API: models, data modules, and the demo."""
