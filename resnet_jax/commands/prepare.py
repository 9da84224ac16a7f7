"""Convert a folder of images to a few large files, for faster training.

    resnet-jax prepare folder photographs photographs-256
    python train.py imagenet --data-dir photographs-256

Images are scaled down so that their shorter side is at most 256 pixels. All images are
rotated upright, converted to RGB and stored as quality-90 JPEGs or, with --encoding
pixels, uncompressed. The files are in array_record format, and training reads them
instead of the folder.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from resnet_jax.data.shard_writer import ShardsConfig
from resnet_jax.errors import ConfigError
from resnet_jax.fields import ranged


@dataclass(frozen=True)
class PrepareConfig(ShardsConfig):
    """The folder to read and the directory to write."""

    what: Positional[Literal["folder"]] = "folder"
    """Kind of source: folder (images in train/CLASS/* and test/CLASS/*)."""
    source: Positional[str | None] = ranged(None, path="as typed")
    """Folder to read."""
    target: Positional[str | None] = ranged(None, path="as typed")
    """Output directory, which must not exist yet."""


def main(options: PrepareConfig) -> None:
    """Writes the files, then prints their path and the number of images."""
    from resnet_jax.data import shard_writer

    if options.source is None or options.target is None:
        raise ConfigError("specify both folders: resnet-jax prepare folder DIR OUT")
    target = Path(options.target)
    counts = shard_writer.write(Path(options.source), target, options)
    num_bytes = sum(path.stat().st_size for path in target.iterdir())
    said = ", ".join(f"{count:,} {name}" for name, count in counts.items())
    print(f"prepared: {target} ({said}; {num_bytes / 1e6:,.0f} MB)")
