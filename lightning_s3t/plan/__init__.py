"""The plan: partition, sequences, units and the theory of survival. No torch; NumPy and SciPy where they are needed."""

import lazy_loader

# NumPy and SciPy take most of a second to import; places, units and survivors do not need them
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
