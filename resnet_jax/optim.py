"""Optimizers, schedules and masks with torch.optim's arithmetic."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from resnet_jax import names
from resnet_jax.errors import ConfigError


def make_schedule(
    name: str,
    *,
    lr: float,
    total_steps: int,
    milestones: Sequence[int] = (),
    gamma: float = 0.1,
    pct_start: float = 0.3,
) -> optax.Schedule:
    """The learning rate as a function of the step, a scalar array.

    constant; cosine from `lr` to 0 over `total_steps` (CosineAnnealingLR); step:
    multiplied by `gamma` at each of `milestones` (MultiStepLR); onecycle: from lr / 25
    to `lr` over `pct_start` of the steps and to lr / 250,000 (OneCycleLR, momentum not
    cycled). All count steps.

    Raises:
      ConfigError: an unknown name.
    """
    if name == "constant":
        return optax.constant_schedule(lr)
    if name == "cosine":
        return optax.cosine_decay_schedule(lr, total_steps)
    if name == "step":
        return optax.piecewise_constant_schedule(lr, dict.fromkeys(milestones, gamma))
    if name == "onecycle":
        return _onecycle(lr, total_steps, pct_start)
    raise ConfigError(f"no schedule {name!r}: constant, cosine, step or onecycle")


def _onecycle(lr: float, total_steps: int, pct_start: float) -> optax.Schedule:
    # optax's cosine_onecycle_schedule puts the peak on a whole step, torch does not.
    peak, end = pct_start * total_steps - 1, total_steps - 1
    first, last = lr / 25, lr / 25 / 1e4

    def schedule(step: Any) -> jax.Array:
        rising = step <= peak
        done = jnp.where(
            rising, step / max(peak, 1), (step - peak) / max(end - peak, 1)
        )
        low = jnp.where(rising, first, last)
        weight = (1 + jnp.cos(jnp.pi * done)) / 2  # 1 at the start of a phase
        return jnp.where(rising, lr + (low - lr) * weight, low + (lr - low) * weight)

    return schedule


def make_optimizer(
    name: str,
    schedule: optax.Schedule,
    *,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    norm_weight_decay: float | None = None,
    bias_weight_decay: float | None = None,
    trainable: Callable[[str], bool] | None = None,
    lr_scale: Callable[[str], float] | None = None,
) -> optax.GradientTransformation:
    """torch.optim.SGD or torch.optim.Adam.

    As there, weight decay is an L2 gradient added before the moments, and Adam has
    betas (.9, .999) and eps 1e-8 outside the root.

    Args:
      weight_decay: of every parameter, if the next two do not say otherwise.
      norm_weight_decay: of BatchNorm's scale and bias.
      bias_weight_decay: of the other biases.
      trainable: by PyTorch's name of a parameter; what is not stays to the bit, and has
        no moments (requires_grad=False).
      lr_scale: by the name, a factor of the learning rate (a param_group's lr).

    Raises:
      ConfigError: an unknown name.
    """
    if name == "adam":
        moments = optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0)
    elif name == "sgd":
        moments = optax.trace(decay=momentum, nesterov=nesterov)
    else:
        raise ConfigError(f"no optimizer {name!r}: adam or sgd")
    decays = {
        "weight": weight_decay,
        "norm": weight_decay if norm_weight_decay is None else norm_weight_decay,
        "bias": weight_decay if bias_weight_decay is None else bias_weight_decay,
    }
    tx = optax.chain(
        _decay(decays),
        moments,
        optax.scale_by_learning_rate(schedule),
    )
    if lr_scale is not None:
        tx = optax.chain(tx, _scale_by_name(lr_scale))
    if trainable is None:
        return tx

    def labels(params: Any) -> Any:
        return names.map_names(lambda n: "train" if trainable(n) else "keep", params)

    return optax.partition({"train": tx, "keep": optax.set_to_zero()}, labels)


def _scale_by_name(
    lr_scale: Callable[[str], float],
) -> optax.GradientTransformation:
    def scale(updates: Any, params: Any = None) -> Any:
        def of_leaf(path: Any, update: jax.Array) -> jax.Array:
            return update * lr_scale(names.torch_name(path))

        return jax.tree_util.tree_map_with_path(of_leaf, updates)

    return optax.stateless(scale)


def _decay(rates: dict[str, float]) -> optax.GradientTransformation:
    """An L2 gradient for each kind of parameter, by its rate."""
    if len(set(rates.values())) == 1:
        rate = rates["weight"]
        return optax.add_decayed_weights(rate) if rate else optax.identity()

    def only(kind: str) -> Callable[[Any], Any]:
        return lambda params: jax.tree.map(lambda k: k == kind, _kinds(params))

    return optax.chain(
        *(optax.add_decayed_weights(rate, only(kind)) for kind, rate in rates.items())
    )


def _kinds(params: Mapping[str, Any]) -> Any:
    """The tree of "norm", "bias" or "weight": what each parameter is."""
    is_norm = "scale" in params  # a BatchNorm's
    return {
        name: _kinds(value)
        if isinstance(value, Mapping)
        else ("norm" if is_norm else "bias" if name == "bias" else "weight")
        for name, value in params.items()
    }
