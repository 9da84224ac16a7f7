"""Locates and describes weights, which may be given as a name, a file or a folder."""

import contextlib
import logging
import os
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, get_args, get_type_hints

from resnet_jax import download, files
from resnet_jax.config import DataConfig, ModelConfig
from resnet_jax.data.augment import NORMALIZATIONS, parse_normalization
from resnet_jax.errors import ConfigError, DataError
from resnet_jax.paths import expand, has_home
from resnet_jax.weights import config_json, exported, hf_hub
from resnet_jax.weights.published import (
    IMAGENET,
    IMAGENET_V2,
    URL,
    is_shipped,
    resize_of,
)
from resnet_jax.weights.read import Content, read

log = logging.getLogger(__name__)

# The usual names of weights files. A folder with one of these files holds a network.
_USUAL = (
    *(exported.WEIGHTS, f"{exported.WEIGHTS}.index.json"),
    *("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
_PUBLISHED = {"imagenet": IMAGENET, "imagenet-v2": IMAGENET_V2}


class Network(NamedTuple):
    """The network, preprocessing and classes that belong to a set of weights."""

    model: ModelConfig
    num_classes: int
    in_channels: int
    normalize: str  # see data.augment.parse_normalization
    resize: int | None  # length of the shorter side, in pixels
    crop: int | None  # side length of the network's square input
    interpolation: str
    class_names: tuple[str, ...] | None
    dataset: str  # the name of the dataset; "folder" for images of any size
    test_data: str | None = None  # digest of the images used for evaluation


def is_network(path: str | Path) -> bool:
    """Returns whether `path` is a folder with weights rather than a run directory."""
    return any((Path(path) / name).is_file() for name in _USUAL)


def locate(source: str, model: str | None = None) -> Path:
    """Returns the path of the weights in `source`, downloading them if necessary.

    Args:
      source: a path; imagenet or imagenet-v2 for torchvision's weights of `model`;
        hf-hub:OWNER/NAME for weights on the Hugging Face Hub; or a name in SHIPPED.
      model: the model's name, which is needed only for imagenet and imagenet-v2.

    Raises:
      ConfigError: if torchvision has no such weights for `model`, or if an hf-hub
        source is malformed or requires a package that is not installed.
      DataError: if the weights are not available.
    """
    if source in _PUBLISHED:
        return _published_file(source, str(model))
    if hf_hub.is_hub(source):
        return hf_hub.fetch(source)
    if is_shipped(source):
        return Path(str(resources.files("resnet_jax.weights") / source))
    return Path(expand(source))


def describe(source: str, path: Path, model: str | None = None) -> Network | None:
    """Returns a description of the weights, or None if there is none.

    For example, a weights file without a config.json next to it has no description.
    Descriptions of architectures that this package does not support are ignored.

    Args:
      source: see locate.
      path: the path of the weights, as returned by locate.
      model: see locate.

    Raises:
      DataError: if a folder's config.json is damaged or cannot be used.
    """
    if source in _PUBLISHED:
        cfg = ModelConfig(model=str(model))
        size = (resize_of(source, str(model)), 224, "bilinear")
        return Network(
            cfg, 1000, 3, "imagenet", *size, imagenet_classes(), dataset="folder"
        )
    if path.name in _USUAL:  # the file's folder may have a description
        path = path.parent
    if exported.is_exported(path):
        return _describe_exported(exported.read_info(path))
    if not (path / exported.CONFIG).is_file() or not _is_foreign(path):
        return None
    found = config_json.read_described(path)
    if found.architecture is None:
        return None
    names = found.class_names
    if names is None and found.num_classes == 1000:
        names = imagenet_classes()
    resize, crop = found.resize or found.crop, found.crop or found.resize
    if (resize, crop) != (found.resize, found.crop) and crop is not None:
        log.info(
            "weights: %s: resizing the shorter side to %d and center-cropping to "
            "%d, because config.json does not specify both sizes",
            *(path, resize, crop),
        )
    known = Network(
        ModelConfig(model=found.architecture, stride_in_1x1=found.stride_in_1x1),
        1000 if found.num_classes is None else found.num_classes,
        found.in_channels,
        _normalization_of(path, found),
        resize,
        crop,
        found.interpolation or "bilinear",
        names,
        dataset="folder",
    )
    try:
        parse_normalization(known.normalize, known.in_channels)
        if known.in_channels not in (1, 3):
            raise ConfigError(f"images have {known.in_channels} channels, not 1 or 3")
        if resize is not None and crop is not None and crop > resize:
            raise ConfigError(f"the crop ({crop}) is larger than the image ({resize})")
    except ConfigError as error:
        raise DataError(f"{path / exported.CONFIG} cannot be used: {error}") from None
    return known


def _normalization_of(path: Path, found: config_json.Described) -> str:
    """Returns the name or MEAN/STD of a folder's normalization; imagenet if unset."""
    if found.mean is None or found.std is None:
        log.info("weights: %s does not specify a normalization: using imagenet", path)
        return "imagenet"
    pair = (found.mean, found.std)
    same = NORMALIZATIONS.items() if len(found.mean) == 3 else ()
    known = [name for name, _ in same if parse_normalization(name) == pair]
    return known[0] if known else "/".join(",".join(map(repr, part)) for part in pair)


def refuse_unknown(source: str, path: Path) -> NoReturn:
    """Raises an error that explains why the network for the weights is unknown.

    Raises:
      ConfigError: if nothing specifies which network the weights at `path` belong to.
      DataError: if the network is not supported, or its description is damaged.
    """
    if path.is_dir() and (path / exported.CONFIG).is_file():
        if _is_foreign(path):
            stated = config_json.read_described(path).stated
            raise DataError(f"{path} holds {stated}, which is not supported")
        exported.read_info(path)
    raise ConfigError(
        f"{source} does not specify which network it contains: use --weights "
        f"{source} --model NAME"
    )


def _is_foreign(folder: Path) -> bool:
    """Returns whether timm or transformers wrote a folder's config.json.

    Raises:
      DataError: if the file is not valid JSON.
    """
    path = folder / exported.CONFIG
    try:
        info = files.read_json(path)
    except ValueError as error:
        raise DataError(f"{path} is damaged ({error}): fetch it again") from None
    if not isinstance(info, dict):
        return False
    return isinstance(info.get("architecture"), str) or "model_type" in info


def _describe_exported(info: dict[str, Any]) -> Network:
    model, shown = info["model"], info["preprocessing"]
    return Network(
        exported.model_config(model),
        model["num_classes"],
        model.get("in_channels", 3),
        shown["normalize"],
        shown["size"],
        shown["image_size"],
        _interpolation(shown),
        tuple(info["class_names"]),
        info["dataset"],
        info.get("test_data"),
    )


def _interpolation(shown: dict[str, Any]) -> str:
    known = get_args(get_type_hints(DataConfig)["interpolation"])
    said = shown.get("interpolation")
    return str(said) if said in known else "bilinear"


def normalization(source: str | None, model: str | None = None) -> str | None:
    """Returns the normalization that `source` requires, or None if `source` is None.

    ImageNet's normalization is returned for bare weights files, which do not specify
    one.
    """
    if source is None:
        return None
    known = None if source in _PUBLISHED else describe(source, locate(source, model))
    return known.normalize if known else "imagenet"


def read_weights(path: Path) -> Content:
    """Reads the weights at `path`, as returned by locate.

    Raises:
      DataError: if the weights cannot be read, or are damaged.
    """
    if exported.is_exported(path):
        info = exported.read_info(path)
        files.check_sha256(path / exported.WEIGHTS, info["sha256"])
    return read(path)


def _published_file(source: str, model: str) -> Path:
    """Returns the path of torchvision's weights file, downloading it if necessary."""
    known = _PUBLISHED[source]
    if model not in known:
        raise ConfigError(
            f"{model} has no {source.replace('imagenet', 'ImageNet')} weights, but "
            f"{', '.join(known)} have them; for another network, pass a weights file "
            "to --pretrained"
        )
    name = known[model]
    for folder in weights_folders():
        if (folder / name).is_file():
            log.info("weights: from %s", folder / name)
            return folder / name
    prefix, cache = Path(name).stem.rsplit("-", 1)[-1], Path()
    try:
        cache = files.cache_dir()
        log.info("weights: downloading %s", URL + name)
        download.fetch(URL + name, prefix, cache / name)
    except (DataError, OSError) as error:
        raise DataError(
            f"{name} cannot be fetched ({error}): download {URL}{name} (its sha256 "
            f"starts with {prefix}) to {cache}"
        ) from None
    return cache / name


def weights_folders() -> list[Path]:
    """Returns this package's and torch.hub's cache folders for published weights."""
    found = []
    with contextlib.suppress(FileNotFoundError):  # no home folder
        found.append(files.cache_dir())
    torch_home = os.environ.get("TORCH_HOME")
    if torch_home or has_home():
        home = expand(torch_home or "~/.cache/torch")
        found.append(Path(home, "hub", "checkpoints"))
    return found


def imagenet_classes() -> tuple[str, ...]:
    """Returns the names of ImageNet's 1,000 classes, in the order of the logits.

    They are copied from meta["categories"] of torchvision's weights.
    """
    text = (resources.files("resnet_jax.weights") / "imagenet_classes.txt").read_text(
        "utf-8"
    )
    return tuple(text.splitlines())
