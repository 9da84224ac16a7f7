"""Inspect a folder of images: classes, sizes, formats, unreadable files, samples.

    resnet-jax data pets
    resnet-jax data pets --recipe finetune --output pets.html

`train.py RECIPE --dataset folder --data-dir pets` trains on such a folder. The command
reads each image once. The page shows sample images, both in their original form and
augmented according to the recipe and the flags.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from resnet_jax import fields
from resnet_jax.commands.usage import did_you_mean
from resnet_jax.config import Config
from resnet_jax.errors import ConfigError
from resnet_jax.recipes import RECIPES


@dataclass(frozen=True)
class DataPageConfig(fields.Group):
    """The folder to read, the page to write, and the augmentation to show."""

    data_dir: Positional[str] = fields.ranged("", path="as typed")
    """Folder with images in train/CLASS/* and test/CLASS/*."""
    output: str = fields.ranged("data.html", path="as typed")
    """HTML page to write."""
    recipe: str = "finetune"
    """Recipe that sets the image size and the augmentation to show."""
    class_names: str | None = fields.ranged(None, path="absolute")
    """File with one line per class: the folder, a space and the name. Defaults to
    DATA_DIR/classes.txt if it exists."""
    image_size: int | None = fields.ranged(None, at_least=1, at_most=4096)
    """Side length of the images in pixels. Defaults to the recipe's value, or to 224.
    """
    crop_padding: int | None = fields.ranged(None, at_least=0)
    """Number of pixels of padding on each side before a random crop. Defaults to the
    recipe's."""
    crop_fill: Literal["black", "reflect"] | None = None
    """How to fill the padding of the random crop. Defaults to the recipe's setting."""
    flip: Literal["none", "random", "alternating"] | None = None
    """Horizontal flipping mode. Defaults to the recipe's."""
    random_resized_crop: bool | None = None
    """Crop a random region and resize it. Defaults to the recipe's setting."""
    auto_augment: Literal["none", "ta_wide"] | None = None
    """Automatic augmentation policy. Defaults to the recipe's."""
    cutout: int | None = fields.ranged(None, at_least=0)
    """Side length in pixels of a square that is set to the mean color. Defaults to the
    recipe's."""
    mixup: float | None = fields.ranged(None, within="[0, inf)")
    """Alpha parameter of mixup. Defaults to the recipe's value."""
    cutmix: float | None = fields.ranged(None, within="[0, inf)")
    """Alpha parameter of CutMix. Defaults to the recipe's value."""
    seed: int = fields.ranged(0, at_least=0)
    """Seed for the augmentation."""


_OWN = ("output", "recipe")  # fields that are not in a run's configuration


def config_of(options: DataPageConfig) -> Config:
    """Returns the recipe's configuration with the command-line flags applied.

    Raises:
      ConfigError: if there is no such recipe, or no folder is given.
    """
    if not options.data_dir:
        raise ConfigError("specify the folder of images: resnet-jax data DIR")
    if options.recipe not in RECIPES:
        hint = did_you_mean(options.recipe, RECIPES)
        raise ConfigError(
            f"unknown recipe {options.recipe!r}{hint} (`train.py --help` lists "
            "the recipes)"
        )
    given = {
        one.name: value
        for one, value in fields.flat(options)
        if one.name not in _OWN and value is not None
    }
    cfg = RECIPES[options.recipe][1]
    cfg = fields.replace(cfg, cache_features=False)
    return fields.replace(cfg, dataset="folder", in_channels=None, **given)


def main(options: DataPageConfig) -> None:
    """Prints a summary of the folder and writes the page."""
    from resnet_jax import files
    from resnet_jax.data import folder, shards, sources, survey
    from resnet_jax.devices import platform
    from resnet_jax.report import samples

    cfg = config_of(options)
    page = Path(options.output)
    files.check_writable(page.parent, "folder", "--output")
    if page.is_dir():
        raise ConfigError(f"--output {page} is a folder: specify a file")
    named = None if cfg.data.class_names is None else Path(cfg.data.class_names)
    if shards.is_shards(Path(options.data_dir)):
        raise ConfigError(
            f"{options.data_dir} was written by `resnet-jax prepare`: specify the "
            "original image folder instead"
        )
    listing = folder.scan(Path(options.data_dir), named)
    platform.prepare("cpu", None)
    side = round(sources.image_shape(cfg.data)[0] / cfg.data.kept)
    surveys = [survey.look(split, side) for split in listing.splits]
    names = listing.class_names
    print(f"{options.data_dir}: {len(names)} classes")
    header = ["class", *(split.root.name for split in listing.splits)]
    print(_table([header, *samples.count_rows(surveys, names)]))
    print(_table([["", "min", "median", "max"], *samples.size_rows(surveys)]))
    print("\n".join(samples.notes(surveys, names)))
    said, bad = samples.unreadable(surveys)
    print("\n".join([said, *(f"  {path}: {why}" for path, why in bad)]))
    samples.write_page(page, options.data_dir, surveys, names, cfg)
    print(f"page: {page}")


def _table(rows: list[list[str]]) -> str:
    """Formats rows as text: the first column left-aligned, the rest right-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if index else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
