"""Linear maps with a custom transpose and derivatives of every order."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

Function = Callable[..., Any]


def linear_map(
    forward: Function, transpose: Function, residuals: Sequence[Any], *values: Any
) -> jax.Array:
    """Returns forward(*residuals, *values), which is linear in `values`.

    In reverse mode, the gradient with respect to the values is `transpose(*residuals,
    cotangent)`, as with jax.custom_derivatives.linear_call. Unlike linear_call, this
    function can also be differentiated with respect to the residuals. It supports
    forward and reverse mode, derivatives of every order, and jax.vmap.

    Args:
      forward: a function that maps the residuals and values to one array.
      transpose: a function that maps the residuals and the cotangent to a tuple with
        one array per value, or to one array if there is a single value.
    """
    found = _linear_map.bind(
        *map(jnp.asarray, (*residuals, *values)),
        forward=_as_tuple(forward),
        transpose=_as_tuple(transpose),
        num_residuals=len(residuals),
    )
    return jnp.asarray(found[0])


def _as_tuple(function: Function) -> Function:
    def call(*args: jax.Array) -> tuple[jax.Array, ...]:
        found = function(*args)
        return found if isinstance(found, tuple) else (found,)

    return call


_linear_map = Primitive("linear_map")
_linear_map.multiple_results = True


def _apply(*args: Any, forward: Function, **_: Any) -> Any:
    return forward(*args)


def _abstract(*avals: Any, forward: Function, **_: Any) -> Any:
    return jax.make_jaxpr(forward)(*avals).out_avals


def _jvp(
    primals: Sequence[Any],
    tangents: Sequence[Any],
    *,
    forward: Function,
    num_residuals: int,
    **params: Any,
) -> tuple[Any, Any]:
    bind = partial(
        _linear_map.bind, forward=forward, num_residuals=num_residuals, **params
    )
    residuals, values = primals[:num_residuals], primals[num_residuals:]
    moves: list[Any] = []
    if any(type(t) is not ad.Zero for t in tangents[num_residuals:]):
        linear = map(ad.instantiate_zeros, tangents[num_residuals:])
        moves.append(bind(*residuals, *linear))
    if any(type(t) is not ad.Zero for t in tangents[:num_residuals]):
        _, by_residuals = jax.jvp(
            lambda *residuals: forward(*residuals, *values),
            tuple(residuals),
            tuple(map(ad.instantiate_zeros, tangents[:num_residuals])),
        )
        moves.append(by_residuals)
    return bind(*primals), [
        sum(parts[1:], parts[0]) for parts in zip(*moves, strict=True)
    ]


def _transpose(
    cotangents: Sequence[Any],
    *args: Any,
    forward: Function,
    transpose: Function,
    num_residuals: int,
) -> list[Any]:
    residuals = args[:num_residuals]
    if all(type(ct) is ad.Zero for ct in cotangents):
        return [None] * len(args)
    found = _linear_map.bind(
        *residuals,
        *map(ad.instantiate_zeros, cotangents),
        forward=transpose,
        transpose=forward,
        num_residuals=num_residuals,
    )
    return [None] * num_residuals + list(found)


def _batched(
    args: Sequence[Any],
    axes: Sequence[Any],
    *,
    forward: Function,
    transpose: Function,
    num_residuals: int,
) -> tuple[Any, Any]:
    pairs = list(zip(args, axes, strict=True))
    (size,) = {x.shape[axis] for x, axis in pairs if axis is not None}
    moved, in_axes = [], []
    for index, (x, axis) in enumerate(pairs):
        if axis is not None:
            x, axis = jnp.moveaxis(x, axis, 0), 0
        elif index >= num_residuals:  # the gradient of a value has a batch axis
            x, axis = jnp.broadcast_to(x, (size, *x.shape)), 0
        moved.append(x)
        in_axes.append(axis)
    fixed = tuple(in_axes[:num_residuals])

    def over_rows(function: Function) -> Function:
        def call(*args: Any) -> Any:
            free = (0,) * (len(args) - num_residuals)
            return jax.vmap(function, (*fixed, *free))(*args)

        return call

    outputs = _linear_map.bind(
        *moved,
        forward=over_rows(forward),
        transpose=over_rows(transpose),
        num_residuals=num_residuals,
    )
    return outputs, [0] * len(outputs)


_linear_map.def_impl(_apply)
_linear_map.def_abstract_eval(_abstract)
ad.primitive_jvps[_linear_map] = _jvp
ad.primitive_transposes[_linear_map] = _transpose
batching.primitive_batchers[_linear_map] = _batched
mlir.register_lowering(_linear_map, mlir.lower_fun(_apply, multiple_results=True))
