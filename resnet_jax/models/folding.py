"""Folds each BatchNorm, in inference mode, into the preceding convolution."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from resnet_jax.models.blocks import BasicBlock, Bottleneck, Network
from resnet_jax.models.hresnet import HResNet
from resnet_jax.models.resnet import ResNet

_NORMS = {
    "conv1": "bn1",
    "conv2": "bn2",
    "conv3": "bn3",
    "downsample.0": "downsample.1",
}


def fold(model: nn.Module, variables: Any) -> tuple[nn.Module, Any]:
    """Returns an equivalent of `model` without BatchNorm, and the variables for it.

    In inference mode, the outputs of both models are equal up to rounding. If a
    BatchNorm does not follow a convolution, or if the arithmetic is less precise than
    float32, `model` and `variables` are returned unchanged.
    """
    if not _can_fold(model):
        return model, variables
    params = _folded(variables["params"], variables["batch_stats"], model.bn_eps)
    return model.clone(norm="none"), {"params": params}


def _can_fold(model: nn.Module) -> bool:
    """Returns whether every BatchNorm of `model` can be folded (see fold)."""
    if not isinstance(model, Network) or model.norm != "batch":
        return False
    if jnp.dtype(model.dtype).itemsize < 4:
        return False
    if type(model) is ResNet:
        return model.block in (BasicBlock, Bottleneck)
    return type(model) is HResNet


def _folded(
    params: Mapping[str, Any], stats: Mapping[str, Any], epsilon: float
) -> dict[str, Any]:
    """Returns a module's `params` with each BatchNorm folded into a convolution."""
    found: dict[str, Any] = {}
    for name, layer in params.items():
        if name in _NORMS.values():
            continue
        norm = _NORMS.get(name, "")
        if norm in params:
            found[name] = _with_norm(layer, params[norm], stats[norm], epsilon)
        elif "kernel" not in layer:
            found[name] = _folded(layer, stats.get(name, {}), epsilon)
        else:
            zeros = jnp.zeros(layer["kernel"].shape[-1:], layer["kernel"].dtype)
            found[name] = {"bias": zeros, **layer}
    return found


def _with_norm(
    conv: Mapping[str, jax.Array],
    norm: Mapping[str, jax.Array],
    stats: Mapping[str, jax.Array],
    epsilon: float,
) -> dict[str, jax.Array]:
    gain = norm["scale"] * lax.rsqrt(stats["var"] + epsilon)
    bias = norm["bias"] + (conv.get("bias", 0) - stats["mean"]) * gain
    return {"kernel": conv["kernel"] * gain.reshape(1, 1, 1, -1), "bias": bias}
