"""Reads weight files of many tools, and compares with PyTorch's logits."""

import argparse
import collections
import functools
import json
import pathlib
import re

import numpy as np
import pytest
from safetensors.torch import save_file

from resnet_jax import models, training
from resnet_jax.errors import ConfigError, DataError
from resnet_jax.weights.adopt import adopt
from resnet_jax.weights.read import read

pytest.importorskip("torchvision", reason="parity needs torch and torchvision")
import torch
import torchvision
import twins
from torch import nn

from benchmarks.torch_models import CifarResNet, PreActResNet

pytestmark = [pytest.mark.optimized, pytest.mark.parity]

SIDE = 32


class Shortcut(nn.Sequential):
    """He et al.'s option B, as in torchvision."""

    def __init__(self, channels, features, stride):
        super().__init__(
            nn.Conv2d(channels, features, 1, stride, bias=False),
            nn.BatchNorm2d(features),
        )


def resnet20(num_classes=10, projected=False):
    net = CifarResNet(3, num_classes)
    if projected:
        for stage, (before, after) in ((2, (16, 32)), (3, (32, 64))):
            block = getattr(net, f"layer{stage}")[0]
            block.downsample = Shortcut(before, after, 2)

            def forward(x, block=block):
                y = block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(x)))))
                return torch.relu(y + block.downsample(x))

            block.forward = forward
    return twins.randomise(net, SIDE).eval()


def resnet18(num_classes=10, **options):
    net = torchvision.models.resnet18(num_classes=num_classes, **options)
    return twins.randomise(net, SIDE).eval()


@functools.cache
def known():
    """(resnet20, resnet18), made once."""
    torch.manual_seed(0)
    return resnet20(), resnet18()


def images(channels=3):
    x = np.random.default_rng(1).normal(size=(4, SIDE, SIDE, channels))
    return x.astype(np.float32)


def logits_of(net, x):
    with torch.no_grad():
        return net(twins.nchw(x, torch.float32)).numpy()


def adopted(path, name="resnet20", key=None, channels=3, num_classes=10, **options):
    """Returns our logits with the weights in the file."""
    model = models.create_model(
        name, num_classes=num_classes, in_channels=channels, **options
    )
    template = training.variable_shapes(model, (SIDE, SIDE, channels))
    variables, _ = adopt(read(path), template, model, name=name, key=key)
    return np.asarray(model.apply(variables, images(channels), train=False))


def assert_read(path, net, **options):
    expected = logits_of(net, images(options.get("channels", 3)))
    error = np.abs(adopted(path, **options) - expected).max() / np.abs(expected).max()
    assert error <= 1e-5


def prefixed(prefix, net, **beside):
    return {prefix + name: value for name, value in net.state_dict().items()} | beside


WRAPPED = {
    "a key": lambda net: {"net": net.state_dict(), "acc": 93.5, "epoch": 7},
    "a figure": lambda net: {"net": net.state_dict(), "acc": torch.tensor(93.5)},
    "a prefix": lambda net: {"state_dict": prefixed("backbone.", net)},
    "Lightning": lambda net: {
        "state_dict": prefixed("model.", net, **{"criterion.weight": torch.ones(10)}),
        "hyper_parameters": argparse.Namespace(lr=0.1),
        "callbacks": {"checkpoint": {"path": pathlib.PurePosixPath("a"), "best": 1.0}},
    },
    "DDP inside compile": lambda net: prefixed("module._orig_mod.", net),
    "an averaged model": lambda net: torch.optim.swa_utils.AveragedModel(
        net
    ).state_dict(),
    "checkpointed blocks": lambda net: {
        re.sub(r"^(layer\d\.\d)\.", r"\1._checkpoint_wrapped_module.", name): value
        for name, value in net.state_dict().items()
    },
    "a training": lambda net: {
        "model": net.state_dict(),
        "optimizer": torch.optim.Adam(net.parameters()).state_dict(),
        "lr_scheduler": {"milestones": collections.Counter({30: 1})},
        "args": argparse.Namespace(lr=np.float64(0.1), device=torch.device("cpu")),
        "best": np.float32(93.1),
        "frozen": {"conv1"},
    },
    "the same twice": lambda net: {
        "model": net.state_dict(),
        "model_ema": net.state_dict(),
    },
    "in a list": lambda net: [net.state_dict(), {"epoch": 3}],
    "two parts": lambda net: {
        **{f"body.{n}": v for n, v in net.state_dict().items() if "fc" not in n},
        **{f"head.{n}": v for n, v in net.state_dict().items() if "fc" in n},
    },
    "two dictionaries": lambda net: {
        "encoder": {n: v for n, v in net.state_dict().items() if "fc" not in n},
        "classifier": dict(net.fc.state_dict()),
    },
    "half precision": lambda net: {
        n: v.half().float() if v.is_floating_point() else v
        for n, v in net.state_dict().items()
    },
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kind", WRAPPED)
def test_whatever_lies_around_the_weights(kind, legacy, tmp_path):
    net, _ = known()
    content = WRAPPED[kind](net)
    path = tmp_path / "w.pth"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    if kind == "half precision":
        net = resnet20()
        net.load_state_dict(content)
    assert_read(path, net)


def with_head(net, name):
    """Returns the state_dict with another name for the last layer."""
    return {
        re.sub(r"^fc\.", f"{name}.", key): value
        for key, value in net.state_dict().items()
    }


@pytest.mark.parametrize(
    "name", ["fc.1", "classifier.1", "last_linear", "linear", "head", "output"]
)
def test_other_names_of_the_last_layer(name, tmp_path):
    net, _ = known()
    torch.save(with_head(net, name), tmp_path / "w.pth")
    assert_read(tmp_path / "w.pth", net)


def test_a_head_of_more_than_one_layer_is_none(tmp_path, caplog):
    net, _ = known()
    content = with_head(net, "fc.1")
    content |= {f"fc.0.{n}": v for n, v in nn.BatchNorm1d(64).state_dict().items()}
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(DataError, match="'fc.1.weight'.* not in a single linear layer"):
        adopted(tmp_path / "w.pth")
    torch.save(content | {"fc.0.weight": torch.ones(3, 64)}, tmp_path / "w.pth")
    with pytest.raises(DataError, match="not in a single linear layer"):
        adopted(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("names", "beside"),
    [
        (("model", "model_ema"), True),
        (("state_dict", "state_dict_ema"), True),
        (("student.", "teacher."), False),
    ],
)
def test_of_two_networks_one_is_chosen(names, beside, tmp_path):
    nets = known()[0], resnet20()
    nets[1].fc.bias.data += 1
    if beside:
        content = {n: net.state_dict() for n, net in zip(names, nets, strict=True)}
    else:
        parts = [prefixed(n, net) for n, net in zip(names, nets, strict=True)]
        content = {"state_dict": parts[0] | parts[1]}
    path = tmp_path / "w.pth"
    torch.save(content, path)
    labels = [name if beside else f"state_dict.{name[:-1]}" for name in names]
    with pytest.raises(DataError, match=".*".join(map(re.escape, labels))) as caught:
        adopted(path)
    assert "--weights-key" in str(caught.value)
    for label, net in zip(labels, nets, strict=True):
        assert_read(path, net, key=label)
    with pytest.raises(ConfigError, match="no weights under 'other'"):
        adopted(path, key="other")


def transformers_names(name):
    parts = {"conv": "convolution", "bn": "normalization"}
    found = re.match(r"layer(\d)\.(\d)\.(conv|bn)(\d)\.(.*)", name)
    if found:
        stage, block, kind, layer, leaf = found.groups()
        place = f"resnet.encoder.stages.{int(stage) - 1}.layers.{block}"
        return f"{place}.layer.{int(layer) - 1}.{parts[kind]}.{leaf}"
    found = re.match(r"layer(\d)\.(\d)\.downsample\.(\d)\.(.*)", name)
    if found:
        stage, block, layer, leaf = found.groups()
        place = f"resnet.encoder.stages.{int(stage) - 1}.layers.{block}.shortcut"
        return f"{place}.{('convolution', 'normalization')[int(layer)]}.{leaf}"
    module, leaf = name.split(".")
    modules = {"conv1": "convolution", "bn1": "normalization"}
    if module == "fc":
        return f"classifier.1.{leaf}"
    return f"resnet.embedder.embedder.{modules[module]}.{leaf}"


def cifar100_names(name):
    name = re.sub(r"^(conv|bn)1\.", lambda m: f"conv1.{int(m[1] == 'bn')}.", name)
    for layer, number in (("conv1", 0), ("bn1", 1), ("conv2", 3), ("bn2", 4)):
        name = re.sub(rf"^layer(\d)\.(\d)\.{layer}\.", rf"layer\1.\2.r.{number}.", name)
    name = name.replace(".r.", ".residual_function.").replace("downsample", "shortcut")
    return re.sub(r"^layer(\d)", lambda m: f"conv{int(m[1]) + 1}_x", name)


RENAMED = {
    "transformers": transformers_names,
    "pytorch-cifar100": cifar100_names,
    "pytorch-cifar": lambda name: name.replace("downsample", "shortcut"),
}


@pytest.mark.parametrize("table", RENAMED)
def test_names_of_other_programs(table, tmp_path, caplog):
    caplog.set_level("INFO")
    _, net = known()
    rename = RENAMED[table]
    state = {rename(n): v.contiguous() for n, v in net.state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    assert_read(tmp_path / "w.safetensors", net, name="resnet18")
    assert f"names of {table}" in caplog.text


@pytest.mark.parametrize("with_pool", [True, False])
def test_a_sequential_of_the_layers(with_pool, tmp_path):
    _, net = known()
    layers = list(net.children())
    if not with_pool:  # a network for small images has none
        net = resnet18()
        net.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        net.maxpool = nn.Identity()
        layers = [one for one in net.children() if not isinstance(one, nn.Identity)]
    body = nn.Sequential(*layers[:-1])
    whole = nn.Sequential(body, nn.Flatten(), layers[-1])
    torch.save(whole.state_dict(), tmp_path / "w.pth")
    stem = None if with_pool else "cifar"
    assert_read(tmp_path / "w.pth", net, name="resnet18", stem=stem)


def test_a_wide_residual_network_of_xternalz(tmp_path, monkeypatch):
    small = functools.partial(
        models.MODELS["wrn28_10"].func, **models.MODELS["wrn28_10"].keywords
    )
    options = {"stage_sizes": (1, 2, 1), "widths": (8, 16, 32), "stem_width": 4}
    monkeypatch.setitem(models.MODELS, "wrn", functools.partial(small, **options))
    net = PreActResNet((1, 2, 1), (8, 16, 32), 4, 10)
    net = twins.randomise(net, SIDE).eval()

    def rename(name):
        name = re.sub(r"^layer(\d)\.", r"block\1.layer.", name)
        return re.sub(r"^bn\.", "bn1.", name.replace("downsample", "convShortcut"))

    state = {f"module.{rename(n)}": v for n, v in net.state_dict().items()}
    torch.save({"state_dict": state, "best_prec1": 96.1}, tmp_path / "w.pth")
    assert_read(tmp_path / "w.pth", net, name="wrn")


def test_shortcuts_by_convolutions(tmp_path):
    """As in torch.hub's CIFAR networks."""
    net = resnet20(projected=True)
    torch.save(net.state_dict(), tmp_path / "w.pth")
    assert_read(tmp_path / "w.pth", net, shortcut="conv_bn")
    with pytest.raises(
        DataError, match="a resnet20: use --model resnet20 --shortcut conv"
    ):
        adopted(tmp_path / "w.pth")


REFUSED = {
    "another depth": (
        lambda: torchvision.models.resnet34(num_classes=10).state_dict(),
        "is a resnet34: use --model resnet34",
    ),
    "a wide one": (
        lambda: torchvision.models.wide_resnet50_2(num_classes=10).state_dict(),
        "is a wide_resnet50_2: use --model wide_resnet50_2",
    ),
    "groups": (
        lambda: torchvision.models.resnext50_32x4d(num_classes=10).state_dict(),
        "is a resnext50_32x4d: use --model resnext50_32x4d",
    ),
    "groups of another number": (
        lambda: torchvision.models.ResNet(
            torchvision.models.resnet.Bottleneck, [1, 1, 1, 1], groups=16
        ).state_dict(),
        "convolutions with 16 groups, which is not supported",
    ),
    "one channel": (
        lambda: _one_channel().state_dict(),
        "takes images with 1 channel, but the chosen network takes 3: "
        "use --in-channels 1",
    ),
    "squeeze and excitation": (
        lambda: {
            **known()[1].state_dict(),
            "layer1.0.se.fc1.weight": torch.ones(4, 64, 1, 1),
        },
        "squeeze-and-excitation, which is not supported",
    ),
    "a deep stem": (
        lambda: {
            **known()[1].state_dict(),
            "conv1.0.weight": torch.ones(32, 3, 3, 3),
            "conv1.3.weight": torch.ones(32, 32, 3, 3),
        },
        "is a ResNet-D",
    ),
    "a layer that normalizes": (
        lambda: {
            **prefixed("1.", known()[1]),
            "0.mean": torch.tensor([0.5, 0.4, 0.3]),
            "0.std": torch.full((3, 1, 1), 0.25),
        },
        "normalizes images itself, with 0.5,0.4,0.3/0.25,0.25,0.25: ",
    ),
    "another kind": (
        lambda: torchvision.models.densenet121(num_classes=10).state_dict(),
        "is a DenseNet, which is not supported",
    ),
    "other classes": (
        lambda: torchvision.models.resnet18(num_classes=1000).state_dict(),
        "has 1000 classes, but the data has 10",
    ),
    "no head": (
        lambda: {n: v for n, v in known()[1].state_dict().items() if "fc" not in n},
        "has no last layer with 512 input features",
    ),
    "a module": (lambda: known()[1], "a whole module, .*ResNet.*model.state_dict()"),
    "a training with a module": (
        lambda: {"model": known()[1], "epoch": 3},
        "a whole module, .*ResNet.*model.state_dict()",
    ),
    "numbers": (lambda: {"acc": 91.0}, "holds no tensors"),
    "an optimizer": (
        lambda: torch.optim.Adam(known()[1].parameters()).state_dict(),
        "holds no named tensors",
    ),
}


def _one_channel():
    net = torchvision.models.resnet18(num_classes=10)
    net.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    return net


@pytest.mark.parametrize("kind", REFUSED)
def test_what_does_not_fit_is_said(kind, tmp_path):
    make, words = REFUSED[kind]
    path = tmp_path / "w.pth"
    torch.save(make(), path)
    with pytest.raises(DataError, match=words) as caught:
        adopted(path, name="resnet18")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_small_stem_is_named_and_read(tmp_path):
    net = resnet18()
    net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    torch.save(net.state_dict(), tmp_path / "w.pth")
    with pytest.raises(
        DataError, match="convolution with a 3x3 kernel: use --stem cifar"
    ):
        adopted(tmp_path / "w.pth", name="resnet18")
    assert_read(tmp_path / "w.pth", net, name="resnet18", stem="cifar")


def test_one_channel_is_read(tmp_path):
    net = _one_channel().eval()
    torch.save(net.state_dict(), tmp_path / "w.pth")
    assert_read(tmp_path / "w.pth", net, name="resnet18", channels=1)


def test_programs_are_named(tmp_path):
    with pytest.warns(FutureWarning):
        torch.jit.script(nn.Linear(2, 3)).save(str(tmp_path / "model.pt"))
    with pytest.raises(DataError, match="is a TorchScript program, not a state dict"):
        read(tmp_path / "model.pt")


def test_weights_in_parts(tmp_path):
    net, _ = known()
    state = {n: v.contiguous() for n, v in net.state_dict().items()}
    names = sorted(state)
    parts = {
        "model-00001-of-00002.safetensors": names[::2],
        "model-00002-of-00002.safetensors": names[1::2],
    }
    for file, keys in parts.items():
        save_file({key: state[key] for key in keys}, tmp_path / file)
    index = {"weight_map": {key: file for file, keys in parts.items() for key in keys}}
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    assert_read(path, net)
    assert_read(tmp_path, net)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(DataError, match="needs model-00002-of-00002.safetensors"):
        read(path)
