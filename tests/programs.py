"""Small networks of many types to export."""

import re
from typing import Any

import jax
import numpy as np
from parts import init_variables

from resnet_jax.models import create_model
from resnet_jax.models.blocks import BasicBlock, Bottleneck, PreActBlock
from resnet_jax.models.resnet import ResNet
from resnet_jax.weights.program import Network

SIZES = {"stage_sizes": (1, 1), "widths": (4, 8)}
NETWORKS: dict[str, Any] = {
    "imagenet stem": lambda: ResNet(num_classes=10, block=BasicBlock, **SIZES),
    "cifar stem": lambda: ResNet(
        num_classes=10, block=BasicBlock, stem="cifar", **SIZES
    ),
    "bottleneck": lambda: ResNet(num_classes=10, block=Bottleneck, **SIZES),
    # No ReLU precedes its pooling, so it also pools negative values.
    "pre-activation": lambda: ResNet(
        num_classes=10, block=PreActBlock, shortcut="conv", **SIZES
    ),
    "pad": lambda: create_model("resnet8", num_classes=10),
    "plain, no norm": lambda: create_model(
        "resnet8", num_classes=10, skip=False, norm="none"
    ),
    "remat": lambda: create_model("resnet8", num_classes=10, remat=True),
    "resnet9": lambda: create_model("resnet9", num_classes=10, width=4),
    "whitened": lambda: create_model("resnet9", num_classes=10, width=4, whiten=True),
    "gray": lambda: create_model("resnet8", num_classes=10, in_channels=1),
    # Wide enough for convolutions whose implementation depends on the batch size.
    "wide": lambda: ResNet(
        *(), num_classes=10, block=BasicBlock, stage_sizes=(1,), widths=(32,),
        stem="cifar",
    ),
}  # fmt: skip


def make_network(model: Any, side: int = 32, count: int = 10) -> Network:
    """Returns `model` with random statistics, and normalized images."""
    shape = (side, side, model.in_channels)
    fresh = init_variables(model, shape, key=jax.random.key(0))
    rng = np.random.default_rng(0)

    def moved(path: Any, x: jax.Array) -> Any:
        name = path[-1].key
        if name == "var":
            return rng.uniform(0.5, 2, x.shape).astype(np.float32)
        if name in ("mean", "bias", "scale"):
            return np.asarray(x + 0.3 * rng.standard_normal(x.shape), np.float32)
        return np.asarray(x)

    variables = jax.tree_util.tree_map_with_path(moved, fresh)
    images = rng.standard_normal((count, *shape)).astype(np.float32)
    return Network(model, variables, images)


def own_logits(network: Network, images: np.ndarray) -> np.ndarray:
    """Returns the package's own logits."""
    apply = jax.jit(network.model.apply, static_argnames="train")
    return np.asarray(apply(network.variables, images, train=False))


def make_info(network: Network) -> dict[str, Any]:
    """Returns the description for an exported folder."""
    _, side, _, channels = network.images.shape
    scores = {"count": 40, "accuracy": 0.5, "accuracy_top5": 0.9, "loss": 1.0}
    return {
        "model": {"model": "tiny", "stem": None, "num_classes": 10, "in_channels": 3},
        "dataset": "digits",
        "class_names": list("0123456789"),
        "preprocessing": {
            "size": side,
            "image_size": side,
            "interpolation": "bilinear",
            "mean": [0.4, 0.5, 0.6][:channels],
            "std": [0.2, 0.3, 0.4][:channels],
        },
        "metrics": {"note": "", **scores},
    }


def pixels_of(info: dict[str, Any], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (uint8 images, preprocessed images)."""
    shown = info["preprocessing"]
    shape = (count, *[shown["image_size"]] * 2, len(shown["mean"]))
    pixels = np.random.default_rng(count).integers(0, 256, shape, np.uint8)
    return pixels, np.float32((pixels / 255 - shown["mean"]) / shown["std"])


def code_of(card: str) -> str:
    """Returns the Python code of a model card."""
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    return code
