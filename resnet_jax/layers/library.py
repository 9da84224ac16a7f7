"""Computes CPU convolutions with oneDNN, as PyTorch does, if jaxlib includes it."""

import functools
import math
import os
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp

from resnet_jax.layers import keep

_OPTIONS: dict[str, Any] = {
    "xla_cpu_experimental_onednn_custom_call": True,
    # By default, XLA runs convolutions with YNNPACK; this setting leaves them to
    # oneDNN.
    "xla_cpu_experimental_ynn_fusion_type": (
        "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"
    ),
}
# Programs that compile in less time than this option specifies are not cached.
_LEAST = "jax_persistent_cache_min_compile_time_secs"
_is_used: ContextVar[bool] = ContextVar("is_used", default=False)


def jit(function: Callable[..., Any], **options: Any) -> Any:
    """Applies jax.jit; with RESNET_JAX_ONEDNN=1, convolutions on CPUs use oneDNN.

    oneDNN fuses biases, additions and ReLU into convolutions; it also computes large
    matrix products. It is off by default because jaxlib cannot serialize programs that
    use oneDNN and therefore cannot cache them: each process has to compile its own
    programs. Once a process has used oneDNN, it stores no programs in the compilation
    cache.
    """
    if not _can_be_used():
        return jax.jit(function, **options)
    # Serializing a program that uses oneDNN raises std::bad_alloc.
    jax.config.update(_LEAST, math.inf)

    @functools.wraps(function)
    def traced(*args: Any, **kwargs: Any) -> Any:
        token = _is_used.set(True)
        try:
            return function(*args, **kwargs)
        finally:
            _is_used.reset(token)

    return jax.jit(traced, compiler_options=dict(_OPTIONS), **options)


def is_used() -> bool:
    """Returns whether the program being traced will be compiled with oneDNN."""
    return _is_used.get()


def _can_be_used() -> bool:
    is_wanted = os.environ.get("RESNET_JAX_ONEDNN") == "1"
    return is_wanted and keep.platform() == "cpu" and _is_there()


@functools.cache
def _is_there() -> bool:
    x = jax.ShapeDtypeStruct((1, 8, 8, 16), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, 16, 16), jnp.float32)

    def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=numbers
        )

    kept = jax.config.values[_LEAST]
    jax.config.update(_LEAST, math.inf)
    jitted = jax.jit(convolve, compiler_options=dict(_OPTIONS))
    try:
        program = jitted.lower(x, kernel).compile().as_text()
    except (jax.errors.JaxRuntimeError, ValueError):  # jaxlib's options vary by version
        return False
    finally:
        jax.config.update(_LEAST, kept)
    return "__onednn$convolution" in (program or "")
