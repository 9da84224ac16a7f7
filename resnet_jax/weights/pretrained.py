"""Loads pretrained networks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from resnet_jax.data.augment import parse_normalization
from resnet_jax.errors import ConfigError
from resnet_jax.models.factory import create
from resnet_jax.paths import expand
from resnet_jax.training.state import init_variables
from resnet_jax.weights import hf_hub, hub
from resnet_jax.weights.adopt import adopt
from resnet_jax.weights.preprocessing import Preprocessing
from resnet_jax.weights.published import IMAGENET, IMAGENET_V2, SHIPPED, is_shipped


class Pretrained(NamedTuple):
    """A network that is ready for model.apply(variables, images, train=False)."""

    model: nn.Module
    variables: dict[str, Any]
    preprocessing: Preprocessing


def begin_from(
    variables: Mapping[str, Any],
    model: nn.Module,
    *,
    source: str,
    name: str,
    key: str | None = None,
    reset_head: bool = False,
) -> dict[str, Any]:
    """Returns the variables of `model`, filled with the weights in `source`.

    The last layer keeps its values from `variables` if `reset_head` is True, or if
    `source` has no last layer of the same shape. A log line says which weights are
    used.

    Args:
      variables: the model's initial variables.
      model: the network.
      source: see hub.locate.
      name: the model's name.
      key: see adopt.
      reset_head: whether the last layer always keeps its values from `variables`.

    Raises:
      ConfigError: if `source` or `key` is unknown, or if `model` and the network in
        `source` have their strides in different layers or different epsilons.
      DataError: if the weights are not available, are damaged, or do not fit.
    """
    path = hub.locate(source, name)
    known = hub.describe(source, path, name)
    own = getattr(model, "stride_in_1x1", False)
    if known is not None and known.model.stride_in_1x1 != own:
        flag = "--stride-in-1x1" if known.model.stride_in_1x1 else "--no-stride-in-1x1"
        raise ConfigError(
            f"{source} has its strides in different layers than the model: use {flag}"
        )
    if known is not None and known.model.norm == getattr(model, "norm", None):
        if known.model.bn_eps != getattr(model, "bn_eps", None):
            raise ConfigError(
                f"{source} has another BatchNorm epsilon than the model: use --bn-eps "
                f"{known.model.bn_eps!r}"
            )
    content = hub.read_weights(path)
    new_head = True if reset_head else None
    found, _ = adopt(content, variables, model, name=name, key=key, new_head=new_head)
    return found


def _parse(given: str) -> tuple[str, str | None]:
    """Returns (source, name) as hub.locate expects them.

    Raises:
      ConfigError: if there is no such network.
    """
    source = expand(given)
    if source.removesuffix("-v2") in IMAGENET:
        is_v2 = source.endswith("-v2")
        return "imagenet-v2" if is_v2 else "imagenet", source.removesuffix("-v2")
    if hf_hub.is_hub(source) or is_shipped(source) or Path(source).is_dir():
        return source, None
    raise ConfigError(
        f"{source} is not a pretrained network: choose one of "
        f"{', '.join((*SHIPPED, *IMAGENET))}, a -v2 variant such as "
        f"{next(iter(IMAGENET_V2))}-v2, hf-hub:OWNER/NAME, or a folder that "
        "`export`, timm or transformers wrote"
    )


def load_pretrained(
    source: str | Path,
    *,
    num_classes: int | None = None,
    key: jax.Array | None = None,
) -> Pretrained:
    """Returns a pretrained network with its variables and preprocessing.

    Args:
      source: the name of a network for which torchvision has ImageNet weights
        (resnet18, resnet34, resnet50, resnet101, resnet152, a wide_resnet or a
        resnext), with the suffix "-v2" for IMAGENET1K_V2; resnet20-cifar10, whose
        weights come with this package; "hf-hub:OWNER/NAME" for weights on the Hugging
        Face Hub; or a folder that `export`, timm or transformers wrote.
      num_classes: number of classes. If the pretrained network has a different number,
        the last layer is initialized randomly.
      key: PRNG key for a randomly initialized last layer; None means
        jax.random.key(0).

    Raises:
      ConfigError: if `source` is unknown.
      DataError: if the weights are not available, or are damaged.
    """
    source, name = _parse(str(source))
    path = hub.locate(source, name)
    known = hub.describe(source, path, name)
    if known is None:
        hub.refuse_unknown(source, path)
    is_new = num_classes is not None and num_classes != known.num_classes
    head = num_classes if num_classes is not None else known.num_classes
    model = create(known.model, head, known.in_channels)
    crop = known.crop or 224
    shape = (crop, crop, known.in_channels)
    variables = init_variables(
        model, shape, key=jax.random.key(0) if key is None else key
    )
    adopted, _ = adopt(
        hub.read_weights(path),
        variables,
        model,
        name=known.model.model,
        new_head=is_new,
    )
    mean, std = parse_normalization(known.normalize, known.in_channels)
    names = None if is_new else known.class_names
    return Pretrained(
        model,
        adopted,
        Preprocessing(
            known.resize or crop, crop, mean, std, names, known.interpolation
        ),
    )
