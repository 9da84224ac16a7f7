"""Writes CIFAR-10 as a folder of JPEGs: train/CLASS/*.jpg and test/CLASS/*.jpg.

    python -m benchmarks.jpegs OUT --side 96 --train 8000 --test 2000
    python -m benchmarks.jpegs OUT --side 96 --train 8000 --test 2000 --skew 10
    python -m benchmarks.jpegs OUT --photos --train 5000 --test 500

With --photos, each file is an enlarged grid of 12 x 9 images from one class; it has
500x375 pixels and about as many bytes as a typical ImageNet file. With --skew, the
first class keeps all of its training images, the last class keeps 1/SKEW of its own,
and the shares of all classes form a geometric progression.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from PIL import Image
from tqdm import tqdm
from tyro.conf import Positional

from resnet_jax import data
from resnet_jax.data.dataset import Dataset

WALL = (12, 9)  # number of images across and down with --photos
PHOTO = (500, 375)


@dataclass(frozen=True)
class Jpegs:
    """Write CIFAR-10 as a folder of JPEGs."""

    out: Positional[Path]
    """Folder to create."""
    side: int = 96
    """Height and width to which images are enlarged, with bicubic interpolation."""
    photos: bool = False
    """Write images of 500x375 pixels instead, each made of 108 images of one class."""
    train: int = 8000
    """Total number of training images before --skew, spread evenly over the classes."""
    test: int = 2000
    """Total number of test images, spread evenly over the classes."""
    skew: float = 1.0
    """Ratio of the largest to the smallest number of training images in a class."""
    quality: int = 90
    """Quality of the JPEGs."""


def main(options: Jpegs) -> None:
    """Writes the folder of JPEGs."""
    for name, split, num in zip(
        ("train", "test"),
        data.load_dataset("cifar10"),
        (options.train, options.test),
        strict=True,
    ):
        skew = options.skew if name == "train" else 1.0
        write(options, options.out / name, split, num, skew)


def write(options: Jpegs, folder: Path, split: Dataset, num: int, skew: float) -> None:
    """Writes `num` images of a split (fewer with a skew), in one folder per class."""
    names = split.class_names
    for label, name in enumerate(tqdm(names, folder.name, file=sys.stderr)):
        images = split.images[split.labels == label]
        share = skew ** (-label / (len(names) - 1))
        (folder / name).mkdir(parents=True)
        for index in range(round(num / len(names) * share)):
            image = photograph(images, index) if options.photos else images[index]
            drawn = Image.fromarray(image)
            size = PHOTO if options.photos else (options.side, options.side)
            drawn = drawn.resize(size, Image.Resampling.BICUBIC)
            path = folder / name / f"{index:05}.jpg"
            drawn.save(path, quality=options.quality)


def photograph(images: np.ndarray, index: int) -> np.ndarray:
    """Returns a grid of images that starts with the image at `index`."""
    across, down = WALL
    chosen = images[(index + np.arange(across * down)) % len(images)]
    rows = chosen.reshape(down, across, *images.shape[1:])
    return rows.swapaxes(1, 2).reshape(down * images.shape[1], -1, images.shape[3])


if __name__ == "__main__":
    main(tyro.cli(Jpegs))
