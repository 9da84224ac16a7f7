"""Pictures and targets of a batch mixed with those of others: mixup and CutMix."""

import jax
import jax.numpy as jnp

Mixed = tuple[jax.Array, jax.Array]


def mix(
    key: jax.Array,
    x: jax.Array,
    targets: jax.Array,
    mixup_alpha: float,
    cutmix_alpha: float,
) -> Mixed:
    """x [B, H, W, C] and targets [B, num_classes], by one or the other, as in timm.

    Of two alphas above 0, each batch has mixup or CutMix with probability one half.
    """
    choice_key, share_key, box_key = jax.random.split(key, 3)

    def by_mixup(x: jax.Array, targets: jax.Array) -> Mixed:
        return mixup(share_key, x, targets, mixup_alpha)

    def by_cutmix(x: jax.Array, targets: jax.Array) -> Mixed:
        return cutmix(share_key, box_key, x, targets, cutmix_alpha)

    if not cutmix_alpha:
        return by_mixup(x, targets)
    if not mixup_alpha:
        return by_cutmix(x, targets)
    chosen = jax.random.bernoulli(choice_key)
    return jax.lax.cond(chosen, by_mixup, by_cutmix, x, targets)


def mixup(key: jax.Array, x: jax.Array, targets: jax.Array, alpha: float) -> Mixed:
    """Each picture and target with the last row's first, and so on: share and rest.

    The share is drawn once for the batch, from Beta(alpha, alpha) (Zhang et al. 2017);
    the partner is the batch turned around, as in timm.
    """
    share = jax.random.beta(key, alpha, alpha)
    return _blend(x, share), _blend(targets, share)


def cutmix(
    key: jax.Array, box_key: jax.Array, x: jax.Array, targets: jax.Array, alpha: float
) -> Mixed:
    """A box of each picture from its partner, the targets by the area.

    Of the area, 1 - Beta(alpha, alpha) but for what lies outside (Yun et al. 2019);
    the same box for all of the batch, the partner as in mixup.
    """
    height, width = x.shape[1:3]
    side = jnp.sqrt(1 - jax.random.beta(key, alpha, alpha))
    inside = []
    for side_key, length in zip(
        jax.random.split(box_key), (height, width), strict=True
    ):
        centre = jax.random.randint(side_key, (), 0, length)
        half = (side * length).astype(jnp.int32) // 2
        places = jnp.arange(length)
        inside.append((places >= centre - half) & (places < centre + half))
    rows, columns = inside
    box = rows.reshape(-1, 1) & columns.reshape(1, -1)
    share = 1 - box.mean(dtype=targets.dtype)
    mixed = jnp.where(box.reshape(1, height, width, 1), x[::-1], x)
    return mixed, _blend(targets, share)


def _blend(values: jax.Array, share: jax.Array) -> jax.Array:
    share = share.astype(values.dtype)
    return share * values + (1 - share) * values[::-1]
