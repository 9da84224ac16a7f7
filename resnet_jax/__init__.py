"""Residual networks in JAX with PyTorch's numbers."""

import importlib
from typing import Any

_HOME = {
    "BasicBlock": "blocks",
    "BatchNorm": "layers",
    "Bottleneck": "blocks",
    "Config": "config",
    "Dataset": "data",
    "HResNet": "hresnet",
    "PreActBlock": "blocks",
    "RECIPES": "recipes",
    "ResNet": "resnet",
    "ResNet9": "resnet9",
    "Preprocessing": "hub",
    "Pretrained": "hub",
    "create_model": "models",
    "from_torch": "pretrained",
    "list_models": "models",
    "load_dataset": "data",
    "load_pretrained": "hub",
    "read_state_dict": "pretrained",
    "summarize": "summary",
    "to_torch": "pretrained",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    """Imports a public name on first use (PEP 562): `import resnet_jax` stays quick."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
