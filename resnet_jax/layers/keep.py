"""Rematerialization on GPUs: a block keeps one feature map per convolution."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

ANY = "any"  # the platform of exported programs, which run on any device
_NAME = "kept"
_platform: ContextVar[str | None] = ContextVar("platform", default=None)
_named = jax.checkpoint_policies.save_only_these_names(_NAME)


def keep(x: jax.Array) -> jax.Array:
    """Marks x as a value that `policy` keeps."""
    if is_plain():
        return x
    found: jax.Array = checkpoint_name(x, _NAME)
    return found


def policy(primitive: Any, *inputs: Any, **params: Any) -> bool:
    """Returns whether jax.checkpoint should keep a value instead of recomputing it.

    Marked values and small values, such as statistics, are kept. The outputs of
    BatchNorm and ReLU are recomputed; otherwise, GPU programs would keep them in
    addition to the feature maps.
    """
    if primitive.name == "name":
        return bool(_named(primitive, *inputs, **params))
    is_map = len(params.get("shape", ())) > 1  # a constant expanded to a feature map
    return not is_map and all(getattr(aval, "ndim", 2) < 2 for aval in inputs)


@contextlib.contextmanager
def compiling_for(platform: str) -> Iterator[None]:
    """Context manager within which steps are traced for `platform`.

    Outside the context, steps are traced for JAX's default platform. Steps traced for
    ANY use only standard operations, and their batch size may be symbolic.
    """
    token = _platform.set(platform)
    try:
        yield
    finally:
        _platform.reset(token)


def is_worthwhile(dtype: Any) -> bool:
    """Returns whether rematerialization pays off for feature maps of `dtype`.

    It pays off only for bfloat16 on GPUs. The TPU compiler fuses recomputation into the
    convolutions on its own.
    """
    return dtype == jnp.bfloat16 and platform() in ("gpu", "cuda", "rocm")


def is_plain() -> bool:
    """Returns whether the current trace is for the platform ANY."""
    return _platform.get() == ANY


def platform() -> str:
    """Returns the platform for which steps are compiled."""
    return _platform.get() or jax.default_backend()
