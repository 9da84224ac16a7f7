"""A folder of images by class to arrays, in torchvision's ImageFolder layout."""

import contextlib
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterator
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from resnet_jax import limits
from resnet_jax.errors import DataError, first_line
from resnet_jax.paths import as_text

if TYPE_CHECKING:
    from PIL import Image

log = logging.getLogger(__name__)

_MAX_PIXELS = 2**26  # of a resized image; a crop of 4096 with .5 beside it has these
# torchvision.datasets.folder's.
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
_HIDDEN = (".", "__MACOSX")
_NO_IMAGES = ("Thumbs.db", "desktop.ini")  # Windows' own, of which nobody need be told


class Split(NamedTuple):
    """The files of DATA_DIR/train or DATA_DIR/test, in ImageFolder's order."""

    root: Path
    class_names: tuple[str, ...]
    paths: list[Path]
    labels: np.ndarray  # [N] int32


class Listing(NamedTuple):
    """What a folder has: looked through once."""

    class_names: tuple[str, ...]
    splits: tuple[Split, Split]  # train and test


def scan(data_dir: Path) -> Listing:
    """The files of data_dir/train/CLASS/* and data_dir/test/CLASS/*.

    The names of the classes are those of the folders in train, sorted: the index is the
    label.

    Raises:
      DataError: there is no such folder, or no class in it; a class is empty or
        missing, or is in test only.
    """
    train = data_dir / "train"
    if not train.is_dir():
        raise DataError(
            f"{train} is no folder: images belong in {train}/CLASS/* and "
            f"{data_dir / 'test'}/CLASS/*; --data-dir names the one above"
        )
    found = tuple(sorted(_classes(train)))
    if not found:
        raise DataError(f"{train} has no class: images belong in {train}/CLASS/*")
    return Listing(
        found, (_scan_split(train, found), _scan_split(data_dir / "test", found))
    )


def _classes(root: Path) -> dict[str, Path]:
    """The folders of the classes in `root`, by their names as text.

    Hidden ones, as .ipynb_checkpoints is, are none.
    """
    found: dict[str, Path] = {}
    for entry in sorted(root.iterdir()):
        if entry.is_dir() and not entry.name.startswith(_HIDDEN):
            name = as_text(entry.name)
            if name in found:
                raise DataError(
                    f"{root} has two folders that are called {name}, once composed "
                    "and once decomposed (Unicode): put them together"
                )
            found[name] = entry
    return found


def _scan_split(root: Path, names: tuple[str, ...]) -> Split:
    if not root.is_dir():
        others = [root.with_name(name) for name in ("val", "valid", "validation")]
        there = [other for other in others if other.is_dir()]
        hint = f"rename or link {there[0]}" if there else "make it"
        raise DataError(f"{root} is missing, with the images to score: {hint}")
    own = _classes(root)
    strangers = sorted(own.keys() - set(names))
    if strangers:
        raise DataError(
            f"{own[strangers[0]]} is a class that {root.parent / 'train'} has not: "
            "give both the same folders"
        )
    paths: list[Path] = []
    labels: list[int] = []
    ignored: Counter[str] = Counter()
    for label, name in enumerate(names):
        if name not in own:
            raise DataError(f"{root / name} is missing: every class needs its folder")
        found = list(list_images(own[name], ignored))
        if not found:
            raise DataError(
                f"{own[name]} has no image ({', '.join(SUFFIXES)}): "
                "fill it, or remove the class"
            )
        paths += found
        labels += [label] * len(found)
    if ignored:
        kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(ignored.items()))
        log.warning("%s: files that are no images by their names: %s", root, kinds)
    return Split(root, names, paths, np.array(labels, np.int32))


def load(
    split: Split, *, size: int, skip_bad: bool = False, **how: Any
) -> tuple[np.ndarray, np.ndarray]:
    """(images [N, size, size, 3] uint8, labels [N] int32) of the files of a split.

    Images are turned as their EXIF says and made RGB; their shorter side becomes
    size / crop_pct, antialiased, and the middle is cropped: what torchvision's
    Resize(256) and CenterCrop(224) do at size 224 and crop_pct .875.

    Args:
      how: crop_pct, and interpolation, bilinear or bicubic.
      skip_bad: leave out what cannot be read, with one warning that counts it.

    Raises:
      DataError: an image cannot be read, or none of a class.
    """
    paths = split.paths

    def read(path: Path) -> np.ndarray | str:
        try:
            return read_image(path, size=size, **how)
        except Exception as error:  # Pillow's readers raise of every kind
            return first_line(error)

    images = np.zeros((len(paths), size, size, 3), np.uint8)
    good = np.ones(len(paths), bool)
    # Pillow decodes and resizes without the GIL.
    with ThreadPool(limits.cpus()) as pool:
        for index, image in enumerate(pool.imap(read, paths, chunksize=16)):
            if isinstance(image, str):
                if not skip_bad:
                    raise DataError(
                        f"{paths[index]} cannot be read ({image}): remove it, or "
                        "leave out such images with --skip-bad-images"
                    )
                good[index] = False
            else:
                images[index] = image
    kept = split.labels
    if not good.all():
        first = paths[int(np.argmin(good))]
        log.warning("%d images left out, the first %s", (~good).sum(), first)
        images, kept = images[good], kept[good]
    for label, name in enumerate(split.class_names):
        if label not in kept:
            raise DataError(f"{split.root / name} has no image that can be read")
    return images, kept


def list_images(directory: Path, ignored: Counter[str] | None = None) -> Iterator[Path]:
    """The images below `directory`, by their names, in ImageFolder's order.

    Hidden files and folders are passed over. Links are followed, but not to a folder
    that was seen already, so that one which leads up does not multiply the images.

    Args:
      ignored: counts the other files by suffix.

    Raises:
      DataError: a folder cannot be read.
    """

    def fail(error: OSError) -> None:
        raise DataError(
            f"{error.filename} cannot be read ({error.strerror}): remove it, or let "
            "this user read it"
        ) from None

    def is_new(folder: Path) -> bool:
        place = folder.resolve()
        if place in seen:
            log.warning("%s leads to %s, which is read once", folder, place)
            return False
        seen.add(place)
        return True

    # With those above it: what they have is of other classes, too.
    seen = {directory.resolve(), *directory.resolve().parents}
    found: list[tuple[str, list[str]]] = []
    for folder, inside, names in os.walk(directory, onerror=fail, followlinks=True):
        shown = sorted(name for name in inside if not name.startswith(_HIDDEN))
        inside[:] = [name for name in shown if is_new(Path(folder, name))]
        found.append((folder, names))
    for folder, names in sorted(found):
        for name in sorted(names):
            if name.startswith(_HIDDEN) or name in _NO_IMAGES:
                continue
            if name.lower().endswith(SUFFIXES):
                yield Path(folder, name)
            elif ignored is not None:
                ignored[Path(name).suffix.lower() or "without a suffix"] += 1


def read_image(path: Path, **how: Any) -> np.ndarray:
    """One image as [size, size, channels] uint8, see fit; a huge one raises."""
    with open_image(path) as file:
        return fit(file, **how)


@contextlib.contextmanager
def open_image(path: Path) -> Iterator["Image.Image"]:
    """The image at `path`, open; a huge one raises ValueError."""
    from PIL import Image

    with Image.open(path) as file:
        # Pillow only warns of these, and warnings are of all threads alike.
        if file.width * file.height > (Image.MAX_IMAGE_PIXELS or sys.maxsize):
            raise ValueError(f"{file.width}x{file.height}: a decompression bomb?")
        yield file


def fit(
    file: "Image.Image",
    *,
    size: int,
    crop_pct: float,
    channels: int = 3,
    interpolation: str = "bilinear",
) -> np.ndarray:
    """`file`, open or made in memory, as [size, size, channels] uint8, see load.

    Raises:
      ValueError: its pixels have no known range, or it would become huge.
    """
    image = crop_middle(decode(file, channels), size, crop_pct, interpolation)
    return np.asarray(image).reshape(size, size, channels)


def decode(file: "Image.Image", channels: int = 3) -> "Image.Image":
    """The pixels of `file` as RGB, or as grey for one channel, upright.

    Raises:
      ValueError: they have no known range.
    """
    file.load()  # by which Pillow itself turns a TIFF
    image = _upright(file, _to_8_bits(file))
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)


def crop_middle(
    image: "Image.Image", size: int, crop_pct: float, interpolation: str
) -> "Image.Image":
    """The middle of `image`, size x size, its shorter side first size / crop_pct.

    Raises:
      ValueError: it would become huge.
    """
    from PIL import Image

    side = round(size / crop_pct)
    width, height = image.size
    # torchvision's Resize(int): the longer side is cut to an integer.
    if width <= height:
        shape = (side, int(side * height / width))
    else:
        shape = (int(side * width / height), side)
    # A strip of one pixel's width is small until its width is an image's.
    if shape[0] * shape[1] > _MAX_PIXELS:
        raise ValueError(f"{width}x{height} would become {shape[0]}x{shape[1]} pixels")
    image = image.resize(shape, Image.Resampling[interpolation.upper()])
    left, top = (round((length - size) / 2) for length in shape)
    return image.crop((left, top, left + size, top + size))


def upright_size(file: "Image.Image") -> tuple[int, int]:
    """Width and height of a JPEG `file` once it is upright; its pixels are not read."""
    turned = _orientation(file) >= 5
    return (file.height, file.width) if turned else (file.width, file.height)


def _orientation(file: "Image.Image") -> int:
    """What the EXIF of `file` says, of which nothing else is read; else 1."""
    try:
        return int(file.getexif().get(274, 1))
    except Exception:  # Pillow's readers raise of every kind; the pixels are sound
        return 1


def _upright(file: "Image.Image", image: "Image.Image") -> "Image.Image":
    """`image` turned as the EXIF of `file` says."""
    from PIL.Image import Transpose

    turn = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }.get(_orientation(file))
    return image if turn is None else image.transpose(turn)


def _to_8_bits(image: "Image.Image") -> "Image.Image":
    """`image`, of 16 bits scaled to 8; Pillow itself cuts off what is above 255.

    Raises:
      ValueError: it has floats or 32 bits, of which nobody says the range.
    """
    from PIL import Image

    is_16 = image.mode.startswith("I;16")
    if not is_16 and image.mode not in ("I", "F"):
        return image
    # Pillow has 16 bits of PNG and PPM as "I" as well.
    if not is_16 and (image.mode == "F" or image.format not in ("PNG", "PPM")):
        bits = "floats" if image.mode == "F" else "32 bits"
        raise ValueError(f"pixels of {bits}, of no known range: save them with 8 or 16")
    values = np.asarray(image).astype(np.float64)
    return Image.fromarray(np.rint(values / 257).clip(0, 255).astype(np.uint8))
