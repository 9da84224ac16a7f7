"""Rematerialization on GPUs: a block keeps one feature map per convolution."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

ANY = "any"  # the platform of an exported program, which runs on any device
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
    """Returns whether to keep a value; this is a policy for jax.checkpoint.

    Marked values and small values, such as statistics, are kept. The outputs of
    BatchNorm and ReLU are recomputed; otherwise, GPU programs would keep them in
    addition to the feature maps.
    """
    if primitive.name == "name":
        return bool(_named(primitive, *inputs, **params))
    is_map = len(params.get("shape", ())) > 1  # a broadcast constant
    return not is_map and all(getattr(aval, "ndim", 2) < 2 for aval in inputs)


@contextlib.contextmanager
def compiling_for(platform: str) -> Iterator[None]:
    """Makes steps that are traced inside the context target `platform`.

    Outside the context, they target JAX's default platform. Steps for ANY consist of
    standard operations only, and their batch size may be symbolic.
    """
    token = _platform.set(platform)
    try:
        yield
    finally:
        _platform.reset(token)


def is_worthwhile(dtype: Any) -> bool:
    """Returns whether rematerialization pays off for feature maps of `dtype`.

    It does only for bfloat16 on GPUs: the TPU compiler fuses recomputation into the
    convolutions by itself.
    """
    return dtype == jnp.bfloat16 and platform() in ("gpu", "cuda", "rocm")


def is_plain() -> bool:
    """Returns whether the current trace is for the platform ANY."""
    return _platform.get() == ANY


def platform() -> str:
    """Returns the platform for which steps are compiled."""
    return _platform.get() or jax.default_backend()
