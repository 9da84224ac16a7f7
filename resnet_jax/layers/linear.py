"""The counterpart of torch.nn.Linear, and PyTorch's weight and bias initialization."""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from resnet_jax.errors import ConfigError
from resnet_jax.layers.inputs import name_of

Init = Literal["torch", "kaiming"]


def _torch_init(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    bound = math.prod(shape[:-1]) ** -0.5
    found: jax.Array = bound * _draw(
        partial(jax.random.uniform, minval=-1), key, shape, dtype
    )
    return found


def _kaiming_init(
    key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype
) -> jax.Array:
    fan_out = math.prod(shape) // shape[-2]
    found: jax.Array = (2 / fan_out) ** 0.5 * _draw(
        jax.random.normal, key, shape, dtype
    )
    return found


def _draw(
    distribution: Callable[..., jax.Array],
    key: jax.Array,
    shape: tuple[int, ...],
    dtype: jnp.dtype,
) -> jax.Array:
    # XLA compiles sampling up to ten times as fast for a flat array as for `shape`.
    return distribution(key, (math.prod(shape),), dtype).reshape(shape)


# nn.Conv2d and nn.Linear draw their weights from U(-1/sqrt(fan_in), 1/sqrt(fan_in)),
# which is equivalent to kaiming_uniform_(a=sqrt(5)). torchvision's ResNet then
# reinitializes its convolutions with kaiming_normal_(mode="fan_out").
KERNEL_INITS: dict[str, Callable[..., jax.Array]] = {
    "torch": _torch_init,
    "kaiming": _kaiming_init,
}


def bias_init(fan_in: int) -> Callable[..., jax.Array]:
    bound = fan_in**-0.5

    def init(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def storage_dtype(dtype: jnp.dtype, param_dtype: jnp.dtype | None = None) -> jnp.dtype:
    """Returns the parameter dtype of a layer that computes in `dtype`."""
    return jnp.promote_types(dtype, jnp.float32) if param_dtype is None else param_dtype


class Linear(nn.Module):
    """The counterpart of torch.nn.Linear, with the same initialization.

    Maps x [..., C] to [..., features].
    """

    features: int
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        param_dtype = storage_dtype(self.dtype, self.param_dtype)
        shape = (x.shape[-1], self.features)
        if self.has_variable("params", "kernel"):
            shape = self.get_variable("params", "kernel").shape
        if x.shape[-1] != shape[0]:
            raise ConfigError(
                f"{name_of(self)} expects features [..., {shape[0]}], "
                f"got {list(x.shape)}"
            )
        kernel = self.param("kernel", KERNEL_INITS["torch"], shape, param_dtype)
        bias = self.param("bias", bias_init(shape[0]), (self.features,), param_dtype)
        x = x.astype(self.dtype) @ kernel.astype(self.dtype)
        return x + bias.astype(self.dtype).reshape((1,) * (x.ndim - 1) + (-1,))
