"""Reads Fashion-MNIST from its four files."""

import gzip
import zlib
from pathlib import Path

import numpy as np

from resnet_jax.data.tfds import Arrays, Published
from resnet_jax.errors import DataError

FASHION_MNIST = Published(
    name="fashion_mnist",
    image_shape=(28, 28, 1),
    num_classes=10,
    num_examples={"train": 60_000, "test": 10_000},
    sha256={},  # tensorflow-datasets does not keep the original order
)
_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
_BYTES = 2**26  # maximum number of bytes to read; the largest file has 60,000 images


def read(data_dir: Path) -> Arrays:
    """Reads Zalando's four files from `data_dir`, or from the Debian package."""
    homes = (data_dir, Path("/usr/share/datasets/fashion-mnist"))
    home = next((h for h in homes if (h / "train-images-idx3-ubyte.gz").exists()), None)
    if home is None:
        raise DataError(
            f"fashion_mnist is not prepared in {data_dir}: put its *-ubyte.gz files "
            "there, or install the Debian package dataset-fashion-mnist"
        )

    def read_file(name: str, *shape: int) -> np.ndarray:
        try:
            with gzip.open(home / f"{name}-ubyte.gz") as file:
                content = np.frombuffer(file.read(_BYTES), np.uint8)
            return content[8 + 4 * len(shape) :].reshape(-1, *shape)
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise DataError(
                f"{home / name}-ubyte.gz cannot be read ({error})"
            ) from None

    train, test = (
        (
            read_file(f"{split}-images-idx3", 28, 28)[..., None],
            read_file(f"{split}-labels-idx1").astype(np.int32),
        )
        for split in ("train", "t10k")
    )
    return Arrays(train, test, _CLASSES)
