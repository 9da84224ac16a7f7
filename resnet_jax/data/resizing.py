"""Options that only concern images of any size, which are resized as they are read."""

from resnet_jax import fields
from resnet_jax.config import DataConfig

_ALWAYS = ("resize", "crop_pct")


def check(cfg: DataConfig, *, is_cropped: bool, is_drawn: bool = False) -> None:
    """Raises ConfigError for an option of resizing if the images have a fixed size.

    Args:
      is_cropped: whether they have any size, see sources.is_cropped.
      is_drawn: whether training resizes regions of them on the host, by the
        interpolation.
    """
    if not is_cropped:
        names = _ALWAYS if is_drawn else (*_ALWAYS, "interpolation")
        why = f"is for images of any size: those of {cfg.dataset} have a fixed size"
        fields.refuse(cfg, names, f"{why}, so leave it out")
