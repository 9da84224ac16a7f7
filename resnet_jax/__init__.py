"""Residual networks in JAX that reproduce PyTorch's numerical results."""

import lazy_loader

# Names are imported on first use (PEP 562), so `import resnet_jax` is fast.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
