"""Other projects' names for the layers of residual networks.

A table is a function that maps one of this package's names, which are torchvision's, to
the corresponding name in another project.
"""

import re
from collections.abc import Callable, Iterable, Mapping

Table = Callable[[str], str]

# Name components that module wrappers add. The first comes from DataParallel,
# DistributedDataParallel and AveragedModel; the second from torch.compile; the third
# from FullyShardedDataParallel; and the last from activation checkpointing.
_WRAPPERS = (
    *("module", "_orig_mod"),
    *("_fsdp_wrapped_module", "_checkpoint_wrapped_module"),
)


def _torchvision(name: str) -> str:
    return name


def _pytorch_cifar(name: str) -> str:
    """Returns the name that kuangliu's and akamaster's networks use.

    See https://github.com/kuangliu/pytorch-cifar.
    """
    return name.replace(".downsample.", ".shortcut.")


def _pytorch_cifar100(name: str) -> str:
    """Returns the name that weiaicunzai's networks use.

    See https://github.com/weiaicunzai/pytorch-cifar100.
    """
    name = re.sub(r"^conv1\.", "conv1.0.", name)
    name = re.sub(r"^bn1\.", "conv1.1.", name)

    def residual(found: re.Match[str]) -> str:
        stage, block, kind, index, leaf = found.groups()
        number = 3 * (int(index) - 1) + (kind == "bn")
        return f"conv{int(stage) + 1}_x.{block}.residual_function.{number}.{leaf}"

    name = re.sub(r"^layer(\d)\.(\d+)\.(conv|bn)(\d)\.(.*)", residual, name)
    return re.sub(
        r"^layer(\d)\.(\d+)\.downsample\.",
        lambda found: f"conv{int(found[1]) + 1}_x.{found[2]}.shortcut.",
        name,
    )


def _transformers(name: str) -> str:
    """Returns the name that ResNetForImageClassification uses.

    The prefix "resnet." is omitted.
    """
    layers = {"conv": "convolution", "bn": "normalization"}
    shortcut = {"0": "convolution", "1": "normalization"}

    def block(found: re.Match[str]) -> str:
        stage, block, layer, leaf = found.groups()
        if layer.startswith("downsample."):
            inside = f"shortcut.{shortcut[layer[-1]]}"
        else:
            inside = f"layer.{int(layer[-1]) - 1}.{layers[layer[:-1]]}"
        return f"encoder.stages.{int(stage) - 1}.layers.{block}.{inside}.{leaf}"

    name = re.sub(r"^conv1\.", "embedder.embedder.convolution.", name)
    name = re.sub(r"^bn1\.", "embedder.embedder.normalization.", name)
    pattern = r"^layer(\d)\.(\d+)\.(conv\d|bn\d|downsample\.[01])\.(.*)"
    return re.sub(pattern, block, name)


def _wide_resnet(name: str) -> str:
    """Returns the name that xternalz's networks use.

    See https://github.com/xternalz/WideResNet-pytorch.
    """
    name = re.sub(r"^bn\.", "bn1.", name)
    name = re.sub(r"^layer(\d)\.", r"block\1.layer.", name)
    return name.replace(".downsample.", ".convShortcut.")


def _sequential(first_stage: int) -> Table:
    """Returns the table for a network rebuilt as nn.Sequential(*children).

    Args:
      first_stage: the index of the first stage among the children.
    """

    def rename(name: str) -> str:
        name = re.sub(r"^conv1\.", "0.", name)
        name = re.sub(r"^bn1\.", "1.", name)
        return re.sub(
            r"^layer(\d)\.", lambda m: f"{int(m[1]) - 1 + first_stage}.", name
        )

    return rename


TABLES: Mapping[str, Table] = {
    "torchvision": _torchvision,
    "pytorch-cifar": _pytorch_cifar,
    "pytorch-cifar100": _pytorch_cifar100,
    "transformers": _transformers,
    "WideResNet-pytorch": _wide_resnet,
    "nn.Sequential with a pool": _sequential(4),
    "nn.Sequential": _sequential(3),
}

# The tables for projects that train on CIFAR.
OF_CIFAR = ("pytorch-cifar", "pytorch-cifar100", "WideResNet-pytorch")


def wrappers_in(names: Iterable[str]) -> list[str]:
    """Returns the wrapper prefixes in `names`, such as "module."."""
    parts = {part for name in names for part in name.split(".")}
    return [f"{wrapper}." for wrapper in _WRAPPERS if wrapper in parts]


def without_wrappers(names: Iterable[str]) -> dict[str, str]:
    """Returns a map from names without wrapper prefixes to the original names.

    If two names would become equal, all names stay unchanged.
    """
    names = list(names)
    stripped = {
        ".".join(part for part in name.split(".") if part not in _WRAPPERS): name
        for name in names
    }
    return stripped if len(stripped) == len(names) else {name: name for name in names}
