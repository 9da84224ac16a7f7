"""Reads image classification data sets from tensorflow-datasets without TensorFlow."""

import contextlib
import io
import logging
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from resnet_jax import limits, waiting
from resnet_jax.data import cache, pillow, records, tfds
from resnet_jax.errors import ConfigError, DataError, first_line

if TYPE_CHECKING:
    from PIL import Image

log = logging.getLogger(__name__)

PREFIX = "tfds:"
_SCORED = ("validation", "val", "test")  # the first of these that exists is scored
_opening = threading.Lock()


class ImageSet(NamedTuple):
    """Description of the images and labels in a prepared directory."""

    directory: Path
    image: str  # name of the image feature
    label: str  # name of the label feature
    side: int | None  # side length if all images are squares of the same size
    channels: int
    class_names: tuple[str, ...]
    splits: tuple[str, str]  # the split to train on and the split to score
    num_examples: tuple[int, int]


def find(name: str, data_dir: Path) -> Path:
    """Returns the directory of a prepared data set, given its tensorflow-datasets name.

    Args:
      name: "tfds:NAME" or "tfds:NAME/CONFIG", optionally followed by ":VERSION". The
        default is the newest prepared version. CONFIG may be omitted if only one
        configuration is prepared.

    Raises:
      ConfigError: if `name` is malformed, or if several configurations are prepared.
      DataError: if the data set is not prepared in `data_dir`.
    """
    form = r"tfds:(\w[\w.+-]*(?:/\w[\w.+-]*)?)(?::(\d+\.\d+\.\d+))?"
    match = re.fullmatch(form, name, re.ASCII)
    if match is None:
        raise ConfigError(
            f"{name!r} is not the name of a data set: use tfds:NAME or "
            "tfds:NAME/CONFIG, optionally followed by :VERSION"
        )
    base, version = match.groups()
    found = _find(base, version, data_dir)
    if not found and "/" not in base and (data_dir / base).is_dir():
        inside = sorted(path.name for path in (data_dir / base).iterdir())
        found = [p for one in inside for p in _find(f"{base}/{one}", version, data_dir)]
    if len(found) > 1:
        choices = ", ".join(f"{PREFIX}{base}/{path.parent.name}" for path in found)
        raise ConfigError(
            f"{name} has several configurations in {data_dir}: choose one of {choices}"
        )
    if not found:
        what = f"{base} {version}" if version else base
        raise DataError(
            f"{what} is not prepared in {data_dir}: prepare it there with "
            "tensorflow-datasets, or use --data-dir to specify the folder that "
            "contains it"
        )
    return found[0]


def _find(base: str, version: str | None, data_dir: Path) -> list[Path]:
    """Returns a list with the directory of `base`, or [] if there is none."""
    if version is None:
        newest = tfds.find(base, data_dir)
        return [] if newest is None else [newest]
    directory = data_dir / base / version
    return [directory] if (directory / "dataset_info.json").is_file() else []


def describe(directory: Path) -> ImageSet:
    """Returns the description of a prepared directory without reading records.

    Raises:
      ConfigError: if the data set is not for image classification, or if it lacks a
        training or test split.
      DataError: if the directory cannot be read.
    """
    import tensorflow_datasets as library

    with _reading(directory):
        info = library.builder_from_directory(directory).info
        features = dict(info.features)
        counts = {name: split.num_examples for name, split in info.splits.items()}
        keys = info.supervised_keys
    kinds = library.features
    images = [k for k, f in features.items() if type(f) is kinds.Image]
    labels = [k for k, f in features.items() if isinstance(f, kinds.ClassLabel)]
    image, label = _choose(images, "image", keys), _choose(labels, "label", keys)
    if image is None or label is None or not features[label].num_classes:
        kinds_of = sorted((k, type(f).__name__) for k, f in features.items())
        has = ", ".join(f"{key} ({kind})" for key, kind in kinds_of)
        raise ConfigError(
            f"{directory} needs images with one label each, but its features are {has}"
        )
    if features[image].np_dtype != np.uint8:
        kind = np.dtype(features[image].np_dtype).name
        raise ConfigError(f"{directory} has {kind} images, but only uint8 can be read")
    *size, channels = features[image].shape
    scored = next((name for name in _SCORED if counts.get(name)), None)
    if not counts.get("train") or scored is None:
        raise ConfigError(
            f"{directory} has the splits {', '.join(counts)}: it needs train and one "
            f"of {', '.join(_SCORED)}"
        )
    names = features[label].names or range(features[label].num_classes)
    return ImageSet(
        directory,
        image,
        label,
        side=size[0] if len(size) == 2 and size[0] == size[1] else None,
        channels=1 if channels == 1 else 3,
        class_names=tuple(map(str, names)),
        splits=("train", scored),
        num_examples=(counts["train"], counts[scored]),
    )


def _choose(names: Sequence[str], usual: str, keys: Any) -> str | None:
    """Returns the name of the feature to use, or None if the choice is unclear.

    In order of preference, the choice is the supervised feature, the feature with the
    usual name, or the only feature of its kind.
    """
    supervised = [key for key in keys or () if isinstance(key, str) and key in names]
    if len(supervised) == 1:
        return supervised[0]
    if usual in names:
        return usual
    return names[0] if len(names) == 1 else None


@contextlib.contextmanager
def _reading(directory: Path) -> Iterator[None]:
    """Converts any exception into a DataError saying that `directory` is unreadable."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # tfds and its readers raise many exception types
        raise _unreadable(directory, first_line(error)) from error


def _unreadable(directory: Path, reason: str) -> DataError:
    return DataError(
        f"{directory} cannot be read ({reason}): prepare it again with "
        "tensorflow-datasets, or use --data-dir to specify another directory"
    )


class Reader:
    """Reads the examples of one split; each process opens the files itself.

    Args:
      how: size, crop_pct and interpolation for pillow.fit, which is used only if image
        sizes differ.
    """

    def __init__(self, source: ImageSet, split: str, **how: Any) -> None:
        self._source, self._split, self._how = source, split, how
        side = source.side or how["size"]
        self.image_shape = (side, side, source.channels)
        self.is_cropped = source.side is None
        self._records: Sequence[bytes] | None = None
        self._parse: Callable[[bytes], Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_parse": None}

    def __call__(self, indices: np.ndarray) -> np.ndarray:
        """Returns the images [n, H, W, C] uint8 at `indices` [n].

        Raises:
          DataError: if an image cannot be read.
        """
        images = np.empty((len(indices), *self.image_shape), np.uint8)
        for image, index in zip(images, indices, strict=True):
            image[:] = self._image(int(index))
        return images

    def load(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns (images [N, H, W, C] uint8, labels [N] int32) of all examples.

        Raises:
          DataError: if an example cannot be read, or if its label is out of range.
        """
        labels = self.labels()
        images = np.empty((len(labels), *self.image_shape), np.uint8)
        with ThreadPool(limits.cpus()) as pool:  # Pillow releases the GIL
            each = pool.imap(self._image, range(len(labels)), chunksize=16)
            found = waiting.over(each, len(labels), f"decoding {self._split}")
            for index, image in enumerate(found):
                images[index] = image
        return images, labels

    def labels(self) -> np.ndarray:
        """Returns the labels [N] int32 of all examples.

        The labels are cached because reading them requires reading all records.

        Raises:
          DataError: if the labels cannot be read, or if one is out of range.
        """
        source, split = self._source, self._split
        with _reading(source.directory):
            serialized, parse = self._open()
        found = cache.load_labels(source.directory, split)
        if found is None or found.shape != (len(serialized),):
            with _reading(source.directory):
                said = f"reading labels of {split}"
                each = waiting.over(serialized, len(serialized), said)
                examples = (parse(record) for record in each)
                found = np.array([int(one[source.label]) for one in examples], np.int32)
            cache.save_labels(source.directory, split, found)
        if found.min() < 0 or found.max() >= len(source.class_names):
            raise DataError(
                f"{source.directory}: labels of {split} range from {found.min()} to "
                f"{found.max()}, but there are {len(source.class_names)} classes"
            )
        return found

    def open(
        self, indices: np.ndarray
    ) -> Iterator[contextlib.AbstractContextManager["Image.Image"]]:
        """Yields context managers that open the stored images at `indices` [n]."""
        return (self._opened(int(index)) for index in indices)

    def fault(self, index: int, reason: str) -> DataError:
        """Returns the DataError to raise for an image that cannot be read."""
        said = f"image {index} of {self._split}: {reason}"
        return _unreadable(self._source.directory, said)

    def _image(self, index: int) -> np.ndarray:
        directory, split = self._source.directory, self._split
        with _reading(directory):
            try:
                with self._opened(index) as file:
                    return self._decode(file)
            except Exception as error:  # Pillow raises many exception types
                raise ValueError(f"image {index} of {split}: {error}") from error

    @contextlib.contextmanager
    def _opened(self, index: int) -> Iterator["Image.Image"]:
        serialized, parse = self._open()
        content = parse(serialized[index])[self._source.image]
        with pillow.opened(io.BytesIO(content)) as file:
            yield file

    def _decode(self, file: "Image.Image") -> np.ndarray:
        side, channels = self._source.side, self._source.channels
        if side is None:
            return pillow.fit(file, channels=channels, **self._how)
        if file.size != (side, side):
            raise ValueError(f"{file.width}x{file.height}, not {side}x{side}")
        image = np.asarray(file.convert("L" if channels == 1 else "RGB"))
        return image.reshape(self.image_shape)

    def _open(self) -> tuple[Sequence[bytes], Callable[[bytes], Any]]:
        """Returns the serialized examples and a function that parses one of them."""
        with _opening:  # concurrent imports of tensorflow-datasets deadlock
            if self._records is None or self._parse is None:
                import tensorflow_datasets as library

                # A worker process has its own logging level.
                logging.getLogger("absl").setLevel(logging.ERROR)
                source = self._source
                builder = library.builder_from_directory(source.directory)
                both = {
                    key: builder.info.features[key]
                    for key in (source.image, source.label)
                }
                self._parse = partial(
                    library.features.FeaturesDict(both).deserialize_example_np,
                    decoders={source.image: library.decode.SkipDecoding()},
                )
                if self._records is None:
                    self._records = records.open_split(
                        builder, source.directory, self._split
                    )
            return self._records, self._parse
