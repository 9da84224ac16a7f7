"""A network written out for others: PyTorch's weights, config.json, a model card."""

import importlib.metadata
import platform
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from resnet_jax import files
from resnet_jax.errors import ConfigError
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

    def save(path: Path) -> None:
        save_file(convert.to_torch(variables), path, metadata={"format": "pt"})

    usage = _usage(info)
    write_folder(
        directory, WEIGHTS, save, info, variables=variables, usage=usage, tag="pytorch"
    )


def check_free(directory: Path, name: str) -> None:
    """Raises ConfigError if a network lies in `directory` in another file than `name`.

    config.json and the card say what one file holds.
    """
    others = sorted(one.name for one in directory.glob("model.*") if one.name != name)
    if others:
        raise ConfigError(
            f"{directory} holds {others[0]}, with a config.json of its own: choose "
            "another folder"
        )


def write_folder(
    directory: Path,
    name: str,
    save: Callable[[Path], object],
    info: dict[str, Any],
    *,
    variables: Mapping[str, Any],
    usage: str,
    tag: str,
) -> None:
    """Writes config.json, README.md and, last, the file `name`, as `save` writes it.

    Args:
      info: see write.
      usage: the card's section on how to use the file.
      tag: what the card calls its kind.

    Raises:
      ConfigError: it cannot be written there.
    """
    check_free(directory, name)
    files.check_writable(directory, "folder", "--export")
    with tempfile.TemporaryDirectory(dir=directory, prefix=".") as scratch:
        whole = Path(scratch, name)
        save(whole)
        info = {
            **info,
            "parameters": sum(x.size for x in jax.tree.leaves(variables["params"])),
            "sha256": file_digest(whole),
            "versions": versions(),
        }
        (directory / name).unlink(missing_ok=True)  # not beside another's config
        files.write_json(directory / CONFIG, info)
        files.write_text(directory / CARD, _card(info, usage, tag))
        shutil.copymode(directory / CARD, whole)  # safetensors lets only the owner read
        whole.replace(directory / name)


def versions() -> dict[str, str | None]:
    """Of Python and of what figures depend on; None for what is not installed."""
    found = {name: version(name) for name in _VERSIONS}
    return {"python": platform.python_version(), **found}


def version(name: str) -> str | None:
    """Of what is installed; None if `name` is not."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # run from a checkout
        return None


def _card(info: Mapping[str, Any], usage: str, tag: str) -> str:
    model, classes = info["architecture"]["model"], info["class_names"]
    scores, shown = info["metrics"], info["preprocessing"]
    note = f" ({scores['note']})" if scores.get("note") else ""
    return f"""---
library_name: resnet_jax
tags: [image-classification, resnet, jax, {tag}]
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

{usage}
Written by resnet_jax with {_list_versions(info["versions"])}.
"""


def _usage(info: Mapping[str, Any]) -> str:
    architecture, shown = info["architecture"], info["preprocessing"]
    model, classes = architecture["model"], info["class_names"]
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
    return f"""`model.safetensors` has torchvision's names and layouts.

```python
{code}```
{torch_code if model in IMAGENET else ""}"""


_STEMS = {
    "cifar": "model.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)\n"
    "model.maxpool = torch.nn.Identity()\n",
}


def _list_versions(versions: Mapping[str, str | None]) -> str:
    return ", ".join(f"{name} {value}" for name, value in versions.items() if value)
