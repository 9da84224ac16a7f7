"""A network written out for others: PyTorch's weights, config.json, a model card."""

import importlib.metadata
import platform
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from resnet_jax import files
from resnet_jax.files import file_digest
from resnet_jax.weights import convert
from resnet_jax.weights.hub import CARD, CONFIG, IMAGENET, WEIGHTS

_VERSIONS = ("resnet-flax-linen", "jax", "flax", "numpy", "safetensors")


def write(directory: Path, variables: Mapping[str, Any], info: dict[str, Any]) -> None:
    """Writes model.safetensors, with torchvision's keys and layouts, config.json and
    README.md into `directory`; the weights come last, and are what makes it a network.

    Args:
      info: architecture, dataset, class_names, preprocessing and metrics, which
        config.json says; beside them come parameters, sha256 and versions.

    Raises:
      ConfigError: it cannot be written there.
    """
    from safetensors.numpy import save_file

    files.check_writable(directory, "folder", "--export")
    with tempfile.TemporaryDirectory(dir=directory, prefix=".") as scratch:
        whole = Path(scratch, WEIGHTS)
        save_file(convert.to_torch(variables), whole, metadata={"format": "pt"})
        info = {
            **info,
            "parameters": sum(x.size for x in jax.tree.leaves(variables["params"])),
            "sha256": file_digest(whole),
            "versions": versions(),
        }
        (directory / WEIGHTS).unlink(missing_ok=True)  # not beside another's config
        files.write_json(directory / CONFIG, info)
        files.write_text(directory / CARD, _card(info))
        shutil.copymode(directory / CARD, whole)  # safetensors lets only the owner read
        whole.replace(directory / WEIGHTS)


def versions() -> dict[str, str | None]:
    """Of Python and of what figures depend on; None for what is not installed."""
    found = {name: _version(name) for name in _VERSIONS}
    return {"python": platform.python_version(), **found}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # run from a checkout
        return None


def _card(info: Mapping[str, Any]) -> str:
    architecture, shown = info["architecture"], info["preprocessing"]
    model, classes = architecture["model"], info["class_names"]
    scores = info["metrics"]
    note = f" ({scores['note']})" if scores.get("note") else ""
    code = f"""import resnet_jax

model, variables, preprocessing = resnet_jax.load_pretrained("DIRECTORY")
x = preprocessing(["a.jpg", "b.png"])  # or uint8 images [B, H, W, {len(shown["mean"])}]
logits = model.apply(variables, x, train=False)  # [2, {len(classes)}]
names = [preprocessing.class_names[label] for label in logits.argmax(-1)]
"""
    stem = _STEMS.get(architecture["stem"], "")
    torch_code = f"""
In PyTorch:

```python
import torch, torchvision
from safetensors.torch import load_file

model = torchvision.models.{model}(num_classes={len(classes)})
{stem}model.load_state_dict(load_file("model.safetensors"))
```
"""
    return f"""---
library_name: resnet_jax
tags: [image-classification, resnet, jax, pytorch]
metrics: [accuracy]
---

# {model}, trained on {info["dataset"]}

{info["parameters"]:,} parameters, {len(classes)} classes: \
{", ".join(classes[:20])}{", ..." if len(classes) > 20 else ""}.

On the {scores["count"]:,} test pictures{note}: accuracy \
{100 * scores["accuracy"]:.2f} %, top 5 {100 * scores["accuracy_top5"]:.2f} %, \
mean cross-entropy {scores["loss"]:.4f}.

Pictures: RGB, scaled to [0, 1], {shown["image_size"]}x{shown["image_size"]} \
(shorter side to {shown["size"]}, {shown["interpolation"]}, then the middle), less the \
mean {shown["mean"]}, divided by {shown["std"]}.

`model.safetensors` has torchvision's names and layouts.

```python
{code}```
{torch_code if model in IMAGENET else ""}
Written by resnet_jax with {_list_versions(info["versions"])}.
"""


_STEMS = {
    "cifar": "model.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)\n"
    "model.maxpool = torch.nn.Identity()\n",
}


def _list_versions(versions: Mapping[str, str | None]) -> str:
    return ", ".join(f"{name} {value}" for name, value in versions.items() if value)
