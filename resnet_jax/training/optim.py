"""Optimizers, schedules and parameter masks; the arithmetic follows torch.optim."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from resnet_jax.config import Config, OptimConfig
from resnet_jax.errors import ConfigError
from resnet_jax.models import torch_names

DECOUPLED = ("adamw", "muon")  # optimizers with decoupled weight decay


def make_schedule(
    cfg: OptimConfig, total_steps: int, steps_per_epoch: int = 1
) -> optax.Schedule:
    """Returns the learning rate, a scalar array, as a function of the step.

    The schedules are:
      constant: always lr.
      cosine: from lr to 0 over `total_steps` (CosineAnnealingLR).
      linear: from lr to 0 over `total_steps`.
      step: multiplies the rate by lr_gamma at each of lr_milestones, which are steps
        (MultiStepLR), or every lr_step_size epochs (StepLR).
      onecycle: from lr / 25 to lr over the fraction pct_start of the steps, and then to
        lr / 250,000 (OneCycleLR, without cycling momentum).

    If warmup_epochs amounts to w steps, the rate at step s < w (counted from 0) is
    multiplied by (s + 1) / (w + 1). With warmup_decay, the rate instead rises linearly
    from warmup_decay * lr to lr over w steps, and the schedule then spans the remaining
    steps (like SequentialLR with a LinearLR followed by the schedule). Without
    sched_on_updates, every step of an epoch uses the rate of the epoch's first step.

    Raises:
      ConfigError: if the name of the schedule is unknown.
    """
    warmup_steps = round(cfg.warmup_epochs * steps_per_epoch)
    if not cfg.sched_on_updates:
        each_step = replace(cfg, sched_on_updates=True)
        by_step = make_schedule(each_step, total_steps, steps_per_epoch)
        return lambda step: by_step(step // steps_per_epoch * steps_per_epoch)
    if cfg.warmup_decay is not None:
        rest = replace(cfg, warmup_epochs=0.0, warmup_decay=None)
        rising = optax.linear_schedule(cfg.lr * cfg.warmup_decay, cfg.lr, warmup_steps)
        left = max(total_steps - warmup_steps, 1)  # the warm-up may span all steps
        after = make_schedule(rest, left, steps_per_epoch)
        return optax.join_schedules([rising, after], [warmup_steps])
    milestones = cfg.lr_milestones
    if cfg.lr_step_size is not None:
        every = cfg.lr_step_size * steps_per_epoch
        milestones = tuple(range(every, total_steps, every))
    schedules = {
        "constant": lambda: optax.constant_schedule(cfg.lr),
        "cosine": lambda: optax.cosine_decay_schedule(cfg.lr, total_steps),
        "linear": lambda: optax.linear_schedule(cfg.lr, 0.0, total_steps),
        "step": lambda: optax.piecewise_constant_schedule(
            cfg.lr, dict.fromkeys(milestones, cfg.lr_gamma)
        ),
        "onecycle": lambda: _onecycle(cfg.lr, total_steps, cfg.pct_start),
    }
    name = cfg.schedule
    if name not in schedules:
        every_name = ", ".join(schedules)
        raise ConfigError(f"unknown schedule {name!r}: choose one of {every_name}")
    schedule = schedules[name]()
    if not warmup_steps:
        return schedule
    warmup = optax.linear_schedule(
        1 / (warmup_steps + 1), 1.0, transition_steps=warmup_steps
    )
    return lambda step: schedule(step) * warmup(step)


def _onecycle(lr: float, total_steps: int, pct_start: float) -> optax.Schedule:
    # Unlike torch, optax.cosine_onecycle_schedule rounds the peak to a whole step.
    peak, end = pct_start * total_steps - 1, total_steps - 1
    first, last = lr / 25, lr / 25 / 1e4

    def schedule(step: Any) -> jax.Array:
        rising = step <= peak
        done = jnp.where(rising, step / max(peak, 1), (step - peak) / (end - peak))
        low = jnp.where(rising, first, last)
        weight = (1 + jnp.cos(jnp.pi * done)) / 2  # 1 at the start of each phase
        return jnp.where(rising, lr + (low - lr) * weight, low + (lr - low) * weight)

    return schedule


def make_ema_decay(
    cfg: Config, steps_per_epoch: int
) -> float | Callable[[jax.Array], jax.Array]:
    """Returns the decay to pass to step.average for the moving average.

    If ema_steps is greater than 1, the decay follows torchvision's reference scripts:
    every ema_steps steps of an epoch, starting with the first step, it is
    1 - (1 - ema_decay) * batch_size * ema_steps / epochs. At other steps, the average
    does not change. During warm-up, each update sets the average to the current
    variables.
    """
    optim = cfg.optim
    if optim.ema_steps == 1:
        return optim.ema_decay
    times = cfg.data.batch_size * optim.ema_steps / cfg.run.epochs
    decay = 1 - min(1.0, (1 - optim.ema_decay) * times)
    warmup_steps = round(optim.warmup_epochs * steps_per_epoch)

    def keep(step: jax.Array) -> jax.Array:
        is_due = step % steps_per_epoch % optim.ema_steps == 0
        return jnp.where(is_due, jnp.where(step <= warmup_steps, 0.0, decay), 1.0)

    return keep


def make_optimizer(
    cfg: OptimConfig,
    schedule: optax.Schedule,
    trainable: Callable[[str], bool] | None = None,
    lr_scale: Callable[[str], float] | None = None,
) -> optax.GradientTransformation:
    """Returns SGD, Adam or AdamW as in torch.optim, or Muon.

    As in torch.optim, SGD and Adam add weight decay to the gradient as an L2 penalty
    before they update the moments; AdamW and Muon decouple the decay from the gradient
    and multiply it by the learning rate. Adam uses betas (0.9, 0.999) and adds eps 1e-8
    outside the square root. Muon (from optax.contrib) orthogonalizes the momentum of
    each convolution kernel as a matrix [K * K * C, F] and scales the result to a root
    mean square of 0.2, about the size of AdamW's updates. All other parameters use
    AdamW. clip_grad is the maximum global norm of the gradient
    (torch.nn.utils.clip_grad_norm_).

    Args:
      trainable: a predicate on PyTorch parameter names. As with requires_grad=False,
        parameters for which the predicate is false do not change at all and have no
        moments.
      lr_scale: a function that maps a parameter's name to its learning rate factor
        (like the lr of a param_group).

    Raises:
      ConfigError: if the name of the optimizer is unknown.
    """
    moments: dict[str, Callable[[], optax.GradientTransformation]] = {
        "adam": optax.scale_by_adam,
        "sgd": lambda: optax.trace(decay=cfg.momentum, nesterov=cfg.nesterov),
        "adamw": optax.scale_by_adam,
        "muon": lambda: _muon(cfg.momentum, cfg.nesterov),
    }
    name = cfg.optimizer
    if name not in moments:
        every_name = ", ".join(moments)
        raise ConfigError(f"unknown optimizer {name!r}: choose one of {every_name}")
    rest = cfg.weight_decay
    decay = _decay(
        {
            "weight": rest,
            "norm": rest if cfg.norm_weight_decay is None else cfg.norm_weight_decay,
            "bias": rest if cfg.bias_weight_decay is None else cfg.bias_weight_decay,
        }
    )
    steps = [decay, moments[name]()]
    if name in DECOUPLED:
        steps.reverse()
    if cfg.clip_grad is not None:
        steps.insert(0, optax.clip_by_global_norm(cfg.clip_grad))
    tx = optax.chain(*steps, optax.scale_by_learning_rate(schedule))
    if lr_scale is not None:
        tx = optax.chain(tx, _scale_by_name(lr_scale))
    return tx if trainable is None else _only(trainable, tx)


def _only(
    trainable: Callable[[str], bool], tx: optax.GradientTransformation
) -> optax.GradientTransformation:
    """Applies `tx` to the trainable parameters, and keeps the others as they are."""

    def labels(params: Any) -> Any:
        return torch_names.map_names(
            lambda n: "train" if trainable(n) else "keep", params
        )

    return optax.partition({"train": tx, "keep": optax.set_to_zero()}, labels)


def _muon(momentum: float, nesterov: bool) -> optax.GradientTransformation:
    def axes(params: Any) -> Any:
        kernel = optax.contrib.MuonDimensionNumbers((0, 1, 2), 3)
        return jax.tree.map(lambda _: kernel, params)

    orthogonal = optax.chain(
        # With zero steps, this only divides the momentum by its Frobenius norm.
        optax.contrib.scale_by_muon(
            ns_steps=0, beta=momentum, nesterov=nesterov, weight_dimension_numbers=axes
        ),
        optax.stateless(lambda updates, _: _orthogonal_kernels(updates)),
    )

    def labels(params: Any) -> Any:
        return jax.tree.map(lambda p: "muon" if p.ndim == 4 else "adam", params)

    return optax.partition({"muon": orthogonal, "adam": optax.scale_by_adam()}, labels)


def _orthogonal_kernels(kernels: Any) -> Any:
    """Orthogonalizes kernels [K, K, C, F] as matrices [K * K * C, F], and scales them.

    The scale makes updates similar in size to AdamW's. Kernels of equal shape are
    batched, so that accelerators compute fewer, larger products.
    """
    leaves, tree = jax.tree.flatten(kernels)
    of_shape: dict[tuple[int, ...], list[int]] = {}
    for index, leaf in enumerate(leaves):
        of_shape.setdefault(leaf.shape, []).append(index)
    for (*inputs, features), indices in of_shape.items():
        form = (math.prod(inputs), features)
        stack = jnp.stack([leaves[index].reshape(form) for index in indices])
        size = 0.2 * max(form) ** 0.5  # Liu et al. 2025
        found = size * jax.vmap(_orthogonalize)(stack)
        for index, matrix in zip(indices, found, strict=True):
            leaves[index] = matrix.reshape(*inputs, features)
    return jax.tree.unflatten(tree, leaves)


def _orthogonalize(matrix: jax.Array) -> jax.Array:
    """Applies Muon's five Newton-Schulz steps (Jordan et al. 2024).

    A step multiplies X [N, M] by a I + b G + c G^2, where G = X^T X. Since these
    polynomials commute, each G can be computed from the previous one, and X need only
    be multiplied by the product of the polynomials (Gram Newton-Schulz; Zhang, Amsel,
    Chen and Dao 2026). This takes 8 N M^2 + 28 M^3 operations instead of
    20 N M^2 + 10 M^3. Rounding matters more, however, because the singular values of G
    are the squared singular values of X. Therefore, G is recomputed after three steps,
    and all products use full precision instead of TF32 or bfloat16.

    Args:
      matrix: [N, M], with a Frobenius norm of at most 1.

    Returns:
      A matrix [N, M] whose singular values are between about 0.7 and 1.2, unless the
      corresponding singular values of `matrix` are tiny.
    """
    if matrix.shape[0] < matrix.shape[1]:
        return _orthogonalize(matrix.T).T
    a, b, c = 3.4445, -4.7750, 2.0315
    times = partial(jnp.matmul, precision="highest")
    found = matrix
    for steps in (3, 2):
        gram = times(found.T, found)  # [M, M]
        change = b * gram + times(c * gram, gram)  # the polynomial without its term a I
        product = a * jnp.eye(len(gram), dtype=gram.dtype) + change
        for _ in range(steps - 1):
            for _ in range(2):
                gram = a * gram + times(change, gram)
            change = b * gram + times(c * gram, gram)
            product = a * product + times(change, product)
        found = times(found, product)
    return found


def _scale_by_name(
    lr_scale: Callable[[str], float],
) -> optax.GradientTransformation:
    def scale(updates: Any, params: Any = None) -> Any:
        def of_leaf(path: Any, update: jax.Array) -> jax.Array:
            return update * lr_scale(torch_names.torch_name(path))

        return jax.tree_util.tree_map_with_path(of_leaf, updates)

    return optax.stateless(scale)


def _decay(rates: dict[str, float]) -> optax.GradientTransformation:
    """Returns an L2 penalty with a separate rate for each kind of parameter."""
    if len(set(rates.values())) == 1:
        rate = rates["weight"]
        return optax.add_decayed_weights(rate) if rate else optax.identity()

    def only(kind: str) -> Callable[[Any], Any]:
        return lambda params: jax.tree.map(lambda k: k == kind, _kinds(params))

    return optax.chain(
        *(optax.add_decayed_weights(rate, only(kind)) for kind, rate in rates.items())
    )


def _kinds(params: Mapping[str, Any]) -> Any:
    """Returns a tree of parameter kinds: "norm", "bias" or "weight"."""
    is_norm = "scale" in params  # only BatchNorm layers have a scale
    return {
        name: _kinds(value)
        if isinstance(value, Mapping)
        else ("norm" if is_norm else "bias" if name == "bias" else "weight")
        for name, value in params.items()
    }
