"""Weights by name, by file, or by exported folder: what to begin from."""

import contextlib
import logging
import os
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from resnet_jax import download, files
from resnet_jax.config import ModelConfig
from resnet_jax.data.augment import parse_normalization
from resnet_jax.errors import ConfigError, DataError
from resnet_jax.fields import from_json
from resnet_jax.models.factory import create
from resnet_jax.paths import expand, has_home
from resnet_jax.training.state import init_variables
from resnet_jax.weights import convert
from resnet_jax.weights.preprocessing import Preprocessing

log = logging.getLogger(__name__)

URL = "https://download.pytorch.org/models/"
# torchvision's IMAGENET1K_V1; the last eight digits begin the file's sha256.
IMAGENET = {
    "resnet18": "resnet18-f37072fd.pth",
    "resnet34": "resnet34-b627a593.pth",
    "resnet50": "resnet50-0676ba61.pth",
    "resnet101": "resnet101-63fe2227.pth",
    "resnet152": "resnet152-394f9c45.pth",
}
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
_SIDES = range(1, 4097)  # of pictures, in pixels


class Pretrained(NamedTuple):
    """A network ready for use: model.apply(variables, images, train=False)."""

    model: nn.Module
    variables: dict[str, Any]
    preprocessing: Preprocessing


def is_exported(path: str | Path) -> bool:
    """Whether `path` is a folder that evaluate.py --export wrote."""
    return (Path(path) / WEIGHTS).is_file()


def read_info(directory: str | Path) -> dict[str, Any]:
    """The config.json of an exported folder.

    Raises:
      DataError: it is missing, or not such a file.
    """
    path = Path(directory) / CONFIG
    try:
        info = files.read_json(path)
        architecture, shown = info["architecture"], info["preprocessing"]
        model_config(architecture)
        sizes = [shown["size"], shown["image_size"]]
        channels, names = architecture.get("in_channels", 3), info["class_names"]
        known = (
            type(architecture["num_classes"]) is int
            and type(channels) is int
            and channels in (1, 3)  # grey or RGB
            and isinstance(names, list)
            and all(isinstance(name, str) for name in names)
            and len(names) == architecture["num_classes"]
            and isinstance(shown["normalize"], str)
            and isinstance(info["dataset"], str)
            and re.fullmatch("[0-9a-f]{64}", info["sha256"]) is not None
            and all(type(side) is int and side in _SIDES for side in sizes)
        )
        if not known:
            raise ValueError("it is not what --export writes")
    except (ConfigError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is not an exported network's ({error!r}): export it again"
        ) from None
    return info  # type: ignore[no-any-return]


def model_config(architecture: Mapping[str, Any]) -> ModelConfig:
    """The model of an exported folder's architecture.

    Raises:
      KeyError, ConfigError: it names none, or options that there are not.
    """
    others = ("num_classes", "in_channels")
    own = {name: value for name, value in architecture.items() if name not in others}
    return from_json(ModelConfig, {"model": own.pop("model"), **own}, "architecture")


def normalization(source: str | None) -> str | None:
    """How the images of a pretrained `source` are normalized; None if there is none.

    torchvision's networks, and bare files, which do not say, have ImageNet's.
    """
    if source is None:
        return None
    if is_exported(source):
        found: str = read_info(source)["preprocessing"]["normalize"]
        return found
    return "imagenet"


def read_weights(source: str, model: str) -> convert.StateDict:
    """The state_dict of `source`: a file, an exported folder, or "imagenet".

    Raises:
      ConfigError: `model` has no weights of ImageNet.
      DataError: they cannot be had, or are damaged.
    """
    if source == "imagenet":
        return convert.read_state_dict(_imagenet_file(model))
    if is_exported(source):
        info, path = read_info(source), Path(source, WEIGHTS)
        files.check_sha256(path, info["sha256"])
        return convert.read_state_dict(path)
    if Path(source).is_dir():
        raise DataError(
            f"{source} is a folder without {WEIGHTS}: name a weights file, or a folder "
            "that evaluate.py --export wrote"
        )
    return convert.read_state_dict(source)


def _imagenet_file(model: str) -> Path:
    """torchvision's file for `model`, from a cache folder or downloaded into one."""
    if model not in IMAGENET:
        raise ConfigError(
            f"{model} has no weights of ImageNet: {', '.join(IMAGENET)} have; for "
            "another, name its file with --pretrained"
        )
    name = IMAGENET[model]
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
            f"{name} cannot be fetched ({error}): put it, from {URL}{name} "
            f"(sha256 begins {prefix}), into {cache}"
        ) from None
    return cache / name


def weights_folders() -> list[Path]:
    """Where published weights may lie: this package's cache, and torch.hub's."""
    found = []
    with contextlib.suppress(FileNotFoundError):  # no home
        found.append(files.cache_dir())
    torch_home = os.environ.get("TORCH_HOME")
    if torch_home or has_home():
        home = expand(torch_home or "~/.cache/torch")
        found.append(Path(home, "hub", "checkpoints"))
    return found


def adopt(
    variables: Mapping[str, Any],
    model: nn.Module,
    *,
    source: str,
    name: str,
    reset_head: bool = False,
) -> dict[str, Any]:
    """`variables` of `model`, called `name`, with the values of `source`.

    The last layer keeps its own values where reset_head says so or `source`, see
    read_weights, has none of its shape; which it was is logged.

    Raises:
      ConfigError, DataError: as read_weights, or the weights are another network's.
    """
    head = model.head
    state_dict = convert.with_names_of(variables, read_weights(source, name))
    own = convert.to_torch({"params": {head: variables["params"][head]}})
    fits = all(
        leaf in state_dict and state_dict[leaf].shape == own[leaf].shape for leaf in own
    )
    skip = (head,) if reset_head or not fits else ()
    adopted = convert.from_torch(state_dict, variables, skip)
    log.info("weights: %s, %s %s", source, "a new" if skip else "with its", head)
    return adopted


def load_pretrained(
    source: str | Path,
    *,
    num_classes: int | None = None,
    key: jax.Array | None = None,
) -> Pretrained:
    """A pretrained network with its preprocessing.

    Args:
      source: resnet18, 34, 50, 101 or 152 for torchvision's of ImageNet, or a folder
        that `evaluate.py --export` wrote.
      num_classes: another than the network's own draws a new last layer.
      key: for that; None is jax.random.key(0).

    Raises:
      ConfigError: an unknown name.
      DataError: the weights cannot be had, or are damaged.
    """
    source = expand(str(source))
    if is_exported(source):
        info = read_info(source)
        known, shown = info["architecture"], info["preprocessing"]
        cfg, own = model_config(known), known["num_classes"]
        channels = known.get("in_channels", 3)
        mean, std = parse_normalization(shown["normalize"], channels)
        preprocessing = Preprocessing(
            shown["size"], shown["image_size"], mean, std, tuple(info["class_names"])
        )
        spec = source
    elif source in IMAGENET:
        cfg, own, channels = ModelConfig(model=str(source)), 1000, 3
        spec = "imagenet"
        mean, std = parse_normalization("imagenet")
        preprocessing = Preprocessing(256, 224, mean, std, imagenet_classes())
    else:
        raise ConfigError(
            f"{source} is no pretrained network: one of {', '.join(IMAGENET)}, or a "
            "folder that evaluate.py --export wrote"
        )
    is_new = num_classes is not None and num_classes != own
    head = num_classes if num_classes is not None else own
    model = create(cfg, head, channels)
    shape = (preprocessing.crop, preprocessing.crop, channels)
    variables = init_variables(
        model, shape, key=jax.random.key(0) if key is None else key
    )
    adopted = adopt(variables, model, source=spec, name=cfg.model, reset_head=is_new)
    if is_new:
        preprocessing = preprocessing._replace(class_names=None)
    return Pretrained(model, adopted, preprocessing)


def imagenet_classes() -> tuple[str, ...]:
    """The names of ImageNet's 1,000 classes, in the order of the logits.

    They are those that torchvision's weights carry (meta["categories"]).
    """
    text = (resources.files("resnet_jax.weights") / "imagenet_classes.txt").read_text(
        "utf-8"
    )
    return tuple(text.splitlines())
