"""Optimizers and schedules with torch.optim's arithmetic."""

from collections.abc import Sequence

import optax

from resnet_jax.errors import ConfigError


def make_schedule(
    name: str,
    *,
    lr: float,
    total_steps: int,
    milestones: Sequence[int] = (),
    gamma: float = 0.1,
) -> optax.Schedule:
    """The learning rate as a function of the step, a scalar array.

    constant; cosine from `lr` to 0 over `total_steps` (CosineAnnealingLR); step:
    multiplied by `gamma` at each of `milestones` (MultiStepLR). All count steps.

    Raises:
      ConfigError: an unknown name.
    """
    if name == "constant":
        return optax.constant_schedule(lr)
    if name == "cosine":
        return optax.cosine_decay_schedule(lr, total_steps)
    if name == "step":
        return optax.piecewise_constant_schedule(lr, dict.fromkeys(milestones, gamma))
    raise ConfigError(f"no schedule {name!r}: constant, cosine or step")


def make_optimizer(
    name: str,
    schedule: optax.Schedule,
    *,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """torch.optim.SGD or torch.optim.Adam.

    As there, weight decay is an L2 gradient added before the moments, on every
    parameter, and Adam has betas (.9, .999) and eps 1e-8 outside the root.

    Raises:
      ConfigError: an unknown name.
    """
    if name == "adam":
        moments = optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8, eps_root=0.0)
    elif name == "sgd":
        moments = optax.trace(decay=momentum, nesterov=nesterov)
    else:
        raise ConfigError(f"no optimizer {name!r}: adam or sgd")
    return optax.chain(
        optax.add_decayed_weights(weight_decay) if weight_decay else optax.identity(),
        moments,
        optax.scale_by_learning_rate(schedule),
    )
