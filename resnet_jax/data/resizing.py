"""Checks the options for images that are resized when they are read."""

from resnet_jax import fields
from resnet_jax.config import DataConfig

_ALWAYS = ("resize", "crop_pct")


def check(cfg: DataConfig, *, is_cropped: bool, is_drawn: bool = False) -> None:
    """Raises ConfigError if a resizing option is set but all images have the same size.

    Args:
      is_cropped: whether image sizes differ; see sources.is_cropped.
      is_drawn: whether the host resizes random regions of training images with
        cfg.interpolation.
    """
    if not is_cropped:
        names = _ALWAYS if is_drawn else (*_ALWAYS, "interpolation")
        why = (
            f"is for images of different sizes, but all {cfg.dataset} images have the "
            "same size"
        )
        fields.refuse(cfg, names, f"{why}: leave it out")
