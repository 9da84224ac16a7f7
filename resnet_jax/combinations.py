"""Validation checks that span several groups of configuration fields."""

from typing import Any

from resnet_jax.errors import ConfigError
from resnet_jax.fields import flat


def check_seeds(cfg: Any) -> None:
    """Raises ConfigError if a seed is too large or a setting forbids multiple seeds."""
    last = cfg.seed + cfg.run.num_seeds - 1
    if last >= 2**32:
        which = "" if last == cfg.seed else f", the last of {cfg.run.num_seeds},"
        raise ConfigError(f"seed {last}{which} is too large: it must be below 2**32")
    if cfg.run.num_seeds == 1:
        return
    for one, value in flat(cfg):
        if value != one.default and one.metadata.get("one_seed"):
            raise ConfigError(
                f"num_seeds cannot be combined with {one.name}: omit one of the two"
            )
    if not cfg.devices.sync_bn:
        raise ConfigError("num_seeds needs --sync-bn")


def check_caching(cfg: Any) -> None:
    """Raises ConfigError if `cfg` does not support cached features.

    Among other things, caching requires the features to be the same in every epoch.
    """
    frozen = cfg.transfer.freeze == "backbone" and cfg.transfer.backbone_bn == "frozen"
    changes = {
        one.name: value != one.default
        for one, value in flat(cfg)
        if one.metadata.get("alters_features")
    }
    if not frozen or any(changes.values()):
        raise ConfigError(
            "cache_features needs features that stay the same in every epoch: use "
            f"--freeze backbone --backbone-bn frozen, without {', '.join(changes)}"
        )
    if cfg.run.log_gradients:
        raise ConfigError("log_gradients cannot be combined with --cache-features")
