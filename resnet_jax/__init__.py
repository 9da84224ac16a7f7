"""Residual networks in JAX with PyTorch's numbers."""

import importlib
from typing import Any

_HOME = {
    "BasicBlock": "blocks",
    "BatchNorm": "layers",
    "Bottleneck": "blocks",
    "Config": "config",
    "Dataset": "data",
    "HResNet": "models",
    "RECIPES": "recipes",
    "ResNet": "models",
    "create_model": "models",
    "list_models": "models",
    "load_dataset": "data",
    "summarize": "summary",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    """Imports a public name on first use (PEP 562): `import resnet_jax` stays quick."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
