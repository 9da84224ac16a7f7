"""Residual networks in JAX with PyTorch's numbers."""

import lazy_loader

# Names are imported on first use (PEP 562): `import resnet_jax` stays quick.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
