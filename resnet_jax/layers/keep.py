"""What a block keeps of its forward pass on GPUs: one map of each convolution."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

ANY = "any"  # the platform of a program that is written out, for whichever reads it
_NAME = "kept"
_platform: ContextVar[str | None] = ContextVar("platform", default=None)
_named = jax.checkpoint_policies.save_only_these_names(_NAME)


def keep(x: jax.Array) -> jax.Array:
    """x, which `policy` keeps."""
    if is_plain():
        return x
    found: jax.Array = checkpoint_name(x, _NAME)
    return found


def policy(primitive: Any, *inputs: Any, **params: Any) -> bool:
    """Of jax.checkpoint: keeps what is named, and what is made of channels' values.

    What BatchNorm and ReLU make of a map is computed again, where a GPU's program would
    keep it beside the map itself.
    """
    if primitive.name == "name":
        return bool(_named(primitive, *inputs, **params))
    is_map = len(params.get("shape", ())) > 1  # of a constant spread out
    return not is_map and all(getattr(aval, "ndim", 2) < 2 for aval in inputs)


@contextlib.contextmanager
def compiling_for(platform: str) -> Iterator[None]:
    """A context in which steps are traced for another platform than JAX's own.

    For ANY they are plain operations, whose batch may be symbolic.
    """
    token = _platform.set(platform)
    try:
        yield
    finally:
        _platform.reset(token)


def is_worthwhile(dtype: Any) -> bool:
    """Whether maps in `dtype` are kept so.

    Where the maps are wider there is memory enough, and TPU's compiler makes them of
    each other without being told, inside the convolutions that read them.
    """
    return dtype == jnp.bfloat16 and platform() in ("gpu", "cuda", "rocm")


def is_plain() -> bool:
    """Whether what is traced now is for ANY platform."""
    return _platform.get() == ANY


def platform() -> str:
    """The one that steps are compiled for."""
    return _platform.get() or jax.default_backend()
