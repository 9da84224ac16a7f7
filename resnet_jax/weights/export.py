"""Exports a network as PyTorch weights, along with config.json and a model card."""

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
from resnet_jax.weights.exported import CARD, CONFIG, WEIGHTS
from resnet_jax.weights.published import IMAGENET

_VERSIONS = ("resnet-flax-linen", "jax", "flax", "numpy", "safetensors")


def write(directory: Path, variables: Mapping[str, Any], info: dict[str, Any]) -> None:
    """Writes model.safetensors, config.json and README.md into `directory`.

    The weights use torchvision's parameter names and layouts. The weights file is
    written last.

    Args:
      directory: the folder to write to; it is created if necessary.
      variables: the network's variables.
      info: the fields model, dataset, class_names, preprocessing and metrics of
        config.json. This function adds the fields parameters, sha256 and versions, as
        well as the fields that timm reads (unless timm has another network of the same
        name).

    Raises:
      ConfigError: if `directory` cannot be written to, or holds a network in another
        format.
    """
    from safetensors.numpy import save_file

    def save(path: Path) -> None:
        save_file(convert.to_torch(variables), path, metadata={"format": "pt"})

    usage = _usage(info)
    write_folder(
        directory, WEIGHTS, save, info, variables=variables, usage=usage, tag="pytorch"
    )


def check_free(directory: Path, name: str) -> None:
    """Raises ConfigError if `directory` contains a network in a file other than `name`.

    config.json and the model card can describe only one file.
    """
    others = sorted(one.name for one in directory.glob("model.*") if one.name != name)
    if others:
        raise ConfigError(
            f"{directory} contains {others[0]}, which has its own config.json: "
            "choose another folder"
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
    """Writes config.json and README.md, and then the file `name`.

    Args:
      directory: see write.
      name: the name of the file that contains the network.
      save: a function that writes this file to the path that it receives.
      info: see write.
      variables: see write.
      usage: the model card's section on how to use the file.
      tag: the model card's tag for the file format.

    Raises:
      ConfigError: if `directory` cannot be written to, or holds a network in another
        format.
    """
    check_free(directory, name)
    files.check_writable(directory, "folder", "--export")
    with tempfile.TemporaryDirectory(dir=directory, prefix=".") as scratch:
        whole = Path(scratch, name)
        save(whole)
        info = {
            **_for_timm(info),
            **info,
            "parameters": sum(x.size for x in jax.tree.leaves(variables["params"])),
            "sha256": file_digest(whole),
            "versions": versions(),
        }
        # If writing fails, an old network must not remain next to a new config.json.
        (directory / name).unlink(missing_ok=True)
        files.write_json(directory / CONFIG, info)
        files.write_text(directory / CARD, _card(info, usage, tag))
        # safetensors creates files that only their owner can read.
        shutil.copymode(directory / CARD, whole)
        whole.replace(directory / name)


def _for_timm(info: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the part of config.json that timm.create_model("local-dir:DIR") reads.

    It is empty if timm has another network of the same name.
    """
    model, shown = info["model"], info["preprocessing"]
    if model["model"] in IMAGENET and not is_timms(model):
        return {}
    side = shown["image_size"]
    return {
        "architecture": model["model"],
        "num_classes": model["num_classes"],
        "pretrained_cfg": {
            "tag": info["dataset"],
            "custom_load": False,
            "input_size": [model["in_channels"], side, side],
            "fixed_input_size": False,
            "interpolation": shown["interpolation"],
            "crop_pct": side / shown["size"],
            "crop_mode": "center",
            "mean": shown["mean"],
            "std": shown["std"],
            "num_classes": model["num_classes"],
            "first_conv": "conv1",
            "classifier": "fc",
            "label_names": info["class_names"],
        },
    }


def is_torchvisions(model: Mapping[str, Any]) -> bool:
    """Returns whether torchvision and timm provide this network, ignoring its stem."""
    usual = {"skip": True, "norm": "batch", "bn_eps": 1e-5, "stride_in_1x1": False}
    return (
        model["model"] in IMAGENET
        and model.get("shortcut") in (None, "conv_bn")
        and all(model.get(name, value) == value for name, value in usual.items())
    )


def is_timms(model: Mapping[str, Any]) -> bool:
    """Returns whether timm provides this network with the same name and stem."""
    return is_torchvisions(model) and model.get("stem") in (None, "imagenet")


def versions() -> dict[str, str | None]:
    """Returns the versions of Python and the main packages (None if not installed)."""
    found = {name: version(name) for name in _VERSIONS}
    return {"python": platform.python_version(), **found}


def version(name: str) -> str | None:
    """Returns the version of the package `name`, or None if it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # e.g., if run from a checkout
        return None


def _card(info: Mapping[str, Any], usage: str, tag: str) -> str:
    architecture, shown = info["model"], info["preprocessing"]
    model, classes = architecture["model"], info["class_names"]
    scores = info["metrics"]
    color = "gray" if len(shown["mean"]) == 1 else "RGB"
    note = f" ({scores['note']})" if scores.get("note") else ""
    return f"""---
library_name: {"timm" if tag == "pytorch" and is_timms(architecture) else "resnet_jax"}
pipeline_tag: image-classification
tags: [image-classification, resnet, jax, {tag}]
datasets: [{info["dataset"]}]
metrics: [accuracy]
model-index:
- name: {model}
  results:
  - task: {{type: image-classification}}
    dataset: {{name: {info["dataset"]}, type: {info["dataset"]}, split: test}}
    metrics:
    - {{type: accuracy, value: {scores["accuracy"]:.4f}}}
---

# {model}, trained on {info["dataset"]}

The network has {info["parameters"]:,} parameters and {len(classes)} classes: \
{", ".join(classes[:20])}{", ..." if len(classes) > 20 else ""}.

On the {scores["count"]:,} test images{note}, it has an accuracy of \
{100 * scores["accuracy"]:.2f} %, a top-5 accuracy of \
{100 * scores["accuracy_top5"]:.2f} % and a mean cross-entropy of {scores["loss"]:.4f}.

The network takes {color} images. The shorter side of an image is resized to \
{shown["size"]} pixels ({shown["interpolation"]} interpolation), and a square of \
{shown["image_size"]}x{shown["image_size"]} pixels is cropped from the center. Pixel \
values are scaled to [0, 1]; then the mean {shown["mean"]} is subtracted, and the \
result is divided by the standard deviation {shown["std"]}.
{_epsilon(architecture)}
{usage}
Written by resnet_jax with {_list_versions(info["versions"])}.
"""


def _epsilon(model: Mapping[str, Any]) -> str:
    """Returns a sentence if the network's BatchNorm has an unusual epsilon."""
    epsilon = model.get("bn_eps", 1e-5)
    return "" if epsilon == 1e-5 else f"\nBatchNorm's epsilon is {epsilon}.\n"


def _usage(info: Mapping[str, Any]) -> str:
    architecture, shown = info["model"], info["preprocessing"]
    model, classes = architecture["model"], info["class_names"]
    code = f"""import resnet_jax

model, variables, preprocessing = resnet_jax.load_pretrained("DIRECTORY")
x = preprocessing(["a.jpg", "b.png"])  # or uint8 images [B, H, W, {len(shown["mean"])}]
logits = model.apply(variables, x, train=False)  # [2, {len(classes)}]
names = [preprocessing.class_names[label] for label in logits.argmax(-1)]
"""
    stem = _stem_code(architecture)
    timm_code = """
To load the network in timm, use \
`timm.create_model("local-dir:DIRECTORY", pretrained=True)`.
"""
    torch_code = f"""
To load the network in PyTorch, run:

```python
import torch, torchvision
from safetensors.torch import load_file

model = torchvision.models.{model}(num_classes={len(classes)})
{stem}model.load_state_dict(load_file("model.safetensors"))
```
"""
    return f"""The weights in `model.safetensors` use torchvision's names and layouts.

```python
{code}```
{torch_code if is_torchvisions(architecture) else ""}\
{timm_code if is_timms(architecture) else ""}"""


def _stem_code(model: Mapping[str, Any]) -> str:
    """Returns code that gives torchvision's network the stem of `model`."""
    channels = model.get("in_channels", 3)
    if model["stem"] == "cifar":
        return (
            f"model.conv1 = torch.nn.Conv2d({channels}, 64, 3, padding=1, bias=False)\n"
            "model.maxpool = torch.nn.Identity()\n"
        )
    if channels != 3:
        return f"model.conv1 = torch.nn.Conv2d({channels}, 64, 7, 2, 3, bias=False)\n"
    return ""


def _list_versions(versions: Mapping[str, str | None]) -> str:
    return ", ".join(f"{name} {value}" for name, value in versions.items() if value)
