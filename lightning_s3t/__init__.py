"""Exact machine unlearning for any LightningModule: one callback trains by slices, one call forgets."""

import lazy_loader

# Lightning and PEFT take seconds to import: `s3t --help` and the pure-Python plan need neither
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
