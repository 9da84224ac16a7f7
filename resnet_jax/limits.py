"""What values the fields of a Config may have, and which go together."""

import math
from typing import TYPE_CHECKING

from resnet_jax.errors import ConfigError

if TYPE_CHECKING:
    from resnet_jax.config import Config

_RANGES = (  # half-open
    ("lr", 0.0, math.inf),
    ("momentum", 0.0, 1.0),
    ("dropout", 0.0, 1.0),
    ("drop_path", 0.0, 1.0),
    ("ema_decay", 0.0, 1.0),
    ("mixup", 0.0, math.inf),
    ("cutmix", 0.0, math.inf),
    ("warmup_epochs", 0.0, math.inf),
    ("weight_decay", 0.0, math.inf),
    ("label_smoothing", 0.0, 1.0),
    ("validation_split", 0.0, 1.0),
    ("lr_gamma", 0.0, math.inf),
    ("pct_start", 0.0, 1.0),
    ("norm_weight_decay", 0.0, math.inf),
    ("bias_weight_decay", 0.0, math.inf),
    ("backbone_lr_scale", 0.0, math.inf),
)
_LEAST = (
    ("epochs", 1),
    ("max_steps", 1),
    ("max_train_samples", 1),
    ("max_test_samples", 1),
    ("batch_size", 1),
    ("eval_batch_size", 1),
    ("image_size", 1),
    ("width", 1),
    ("cutout", 0),
    ("crop_padding", 0),
    ("log_every_steps", 1),
    ("keep", 1),
    ("save_every_steps", 1),
    ("save_every_minutes", 0.0),
    ("seed", 0),
    ("num_seeds", 1),
    ("accumulate", 1),
    ("devices", 1),
    ("num_processes", 1),
    ("process_id", 0),
    ("steps_per_call", 1),
    ("workers", 0),
)


def check(cfg: "Config") -> None:
    """Raises ConfigError where a field of `cfg` has no such value, or wants another."""
    for name, low, high in _RANGES:
        value = getattr(cfg, name)
        if value is not None and not low <= value < high:
            raise ConfigError(f"{name} {value} is not in [{low:g}, {high:g})")
    for name, least in _LEAST:
        value = getattr(cfg, name)
        if value is not None and value < least:
            raise ConfigError(f"{name} {value} is too small: at least {least}")
    if cfg.image_size is not None and cfg.image_size > 4096:
        raise ConfigError(f"image_size {cfg.image_size} is too large: up to 4096")
    if cfg.coordinator is not None:
        host, _, port = cfg.coordinator.rpartition(":")
        is_port = port.isdecimal() and len(port) <= 5 and 0 < int(port) < 2**16
        if not host or not is_port:
            raise ConfigError(
                f"coordinator {cfg.coordinator!r} is not HOST:PORT, as host0:1234 is"
            )
    if cfg.seed + cfg.num_seeds > 2**32:
        raise ConfigError(f"seed {cfg.seed} is too large: below 2**32")
    for name in ("log_gradients", "cache_features", "stream"):
        if cfg.num_seeds > 1 and getattr(cfg, name):
            raise ConfigError(f"num_seeds is without {name}, which is of one seed")
    if cfg.num_seeds > 1 and cfg.bn_scope == "local":
        raise ConfigError("num_seeds needs --bn-scope global")
    if not 0.0 < cfg.crop_pct <= 1.0:
        raise ConfigError(f"crop_pct {cfg.crop_pct} is not in (0, 1]")
    if cfg.clip_grad is not None and not 0.0 < cfg.clip_grad < math.inf:
        raise ConfigError(f"clip_grad {cfg.clip_grad} is not in (0, inf)")
    if cfg.flip_alternating and not cfg.flip:
        raise ConfigError(
            "flip_alternating needs --flip: give both, or --no-flip-alternating"
        )
    steps = cfg.lr_milestones
    if any(step < 1 for step in steps) or list(steps) != sorted(set(steps)):
        raise ConfigError(f"lr_milestones {steps} are not steps in rising order")
    if cfg.schedule == "step" and not steps:
        raise ConfigError("schedule step needs lr_milestones")
    if cfg.backbone_bn == "frozen" and cfg.freeze == "none":
        raise ConfigError("backbone_bn frozen needs --freeze, to say which")
    if cfg.fresh_head and cfg.pretrained is None:
        raise ConfigError("fresh_head needs --pretrained: without, all is fresh")
    if cfg.cache_features:
        frozen = cfg.freeze == "backbone" and cfg.backbone_bn == "frozen"
        changes = ("crop_padding", "flip", "cutout", "mixup", "cutmix")
        changes += ("dropout", "drop_path")
        if not frozen or any(getattr(cfg, name) for name in changes):
            raise ConfigError(
                "cache_features needs features that do not change: --freeze "
                f"backbone --backbone-bn frozen, without {', '.join(changes)}"
            )
        if cfg.log_gradients:
            raise ConfigError("log_gradients has no layers where features are cached")
