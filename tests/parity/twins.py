"""Makes PyTorch networks with random weights and statistics, and ours with the same."""

import copy
from collections.abc import Callable

import numpy as np
import torch
from torchvision.models import resnet

import resnet_jax
from benchmarks.torch_models import create_twin, with_cifar_stem
from resnet_jax import training

torch.set_num_threads(1)  # more threads, and JAX's and these wait for each other

WIDTHS = (16, 32, 64, 128)
BLOCKS = {
    "basic": (resnet.BasicBlock, resnet_jax.BasicBlock),
    "bottleneck": (resnet.Bottleneck, resnet_jax.Bottleneck),
}
# With groups, their own width, and the stride in the first convolution.
GROUPED = {"groups": 4, "width_per_group": 32, "stride_in_1x1": True}


def randomise(twin: torch.nn.Module, side: int, seed: int = 0) -> torch.nn.Module:
    """Gives BatchNorm of `twin` parameters and statistics unlike the initial ones.

    The statistics are those of noise, so that no activation explodes, each off by a
    factor of its own.
    """
    generator = torch.Generator().manual_seed(seed)
    norms = [m for m in twin.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.weight.uniform_(0.5, 1.5, generator=generator)
            norm.bias.uniform_(-0.3, 0.3, generator=generator)
            norm.momentum = 1.0
        twin.train()(torch.randn(16, 3, side, side, generator=generator))
        for norm in norms:
            norm.momentum = 0.1
            off = torch.empty(2, norm.num_features).uniform_(
                0.7, 1.4, generator=generator
            )
            norm.running_mean *= off[0]
            norm.running_var *= off[1]
    return twin


def thin(block: type, stem: str | None, grouped: bool = False) -> torch.nn.Module:
    """Returns torchvision's ResNet with one `block` per stage, of widths WIDTHS.

    It has no argument for them, so its own parts are put together again.
    """
    twin = resnet.ResNet(block, [1, 1, 1, 1])
    twin.inplanes = WIDTHS[0]
    if grouped:
        twin.groups, twin.base_width = GROUPED["groups"], GROUPED["width_per_group"]
    for index, width in enumerate(WIDTHS, start=1):
        layer = twin._make_layer(block, width, 1, stride=1 if index == 1 else 2)
        setattr(twin, f"layer{index}", layer)
        if grouped:
            layer[0].conv1.stride, layer[0].conv2.stride = layer[0].conv2.stride, (1, 1)
    twin.conv1 = torch.nn.Conv2d(3, WIDTHS[0], 7, stride=2, padding=3, bias=False)
    twin.bn1 = torch.nn.BatchNorm2d(WIDTHS[0])
    twin.fc = torch.nn.Linear(WIDTHS[-1] * block.expansion, 10)
    return with_cifar_stem(twin) if stem == "cifar" else twin


def make_pair(name: str, stem: str | None = None) -> tuple[torch.nn.Module, Callable]:
    """(twin in float32, dtype -> our model) of a named model, of one of BLOCKS, or
    "grouped".

    The last two have one block in each of four stages, of WIDTHS.
    """
    torch.manual_seed(0)
    if name in (*BLOCKS, "grouped"):
        is_grouped = name == "grouped"
        theirs, ours = BLOCKS["bottleneck" if is_grouped else name]
        twin = thin(theirs, stem, is_grouped)
        own = GROUPED if is_grouped else {}

        def make(dtype):
            options = {"widths": WIDTHS, "stem": stem, "dtype": dtype, **own}
            return resnet_jax.ResNet(ours, (1,) * 4, num_classes=10, **options)

    else:
        twin = create_twin(name, stem)

        def make(dtype):
            return resnet_jax.create_model(name, num_classes=10, stem=stem, dtype=dtype)

    return randomise(twin, 64 if stem == "imagenet" else 32), make


def state_dict_of(twin: torch.nn.Module) -> dict[str, np.ndarray]:
    # Copies, because PyTorch's continue to change.
    return {k: v.detach().numpy().copy() for k, v in twin.state_dict().items()}


def variables_of(twin: torch.nn.Module, model, side: int):
    """Returns our variables with the values of `twin`."""
    template = training.variable_shapes(model, (side, side, 3))
    return resnet_jax.from_torch(state_dict_of(twin), template)


def nchw(images: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    return torch.tensor(images.transpose(0, 3, 1, 2), dtype=dtype)


def stages_of(twin: torch.nn.Module, x: torch.Tensor) -> dict[str, np.ndarray]:
    """Returns logits and the outputs of the stem and each stage, NHWC float64."""
    found: dict[str, torch.Tensor] = {}
    hooks = []

    def keep(name):
        def hook(module, args, output):
            found[name] = output

        return hook

    def keep_input(module, args):
        found["stem"] = args[0]

    for name, child in twin.named_children():
        if name == "pool":
            for block, pool in child.items():
                hooks.append(pool.register_forward_hook(keep(f"{block}.pool")))
        elif name.startswith("layer"):
            hooks.append(child.register_forward_hook(keep(name)))
            if name == "layer1":
                hooks.append(child.register_forward_pre_hook(keep_input))
    with torch.inference_mode():
        logits = twin(x)
    for hook in hooks:
        hook.remove()
    stages = {k: v.double().numpy().transpose(0, 2, 3, 1) for k, v in found.items()}
    return {**stages, "logits": logits.double().numpy()}


def double(twin: torch.nn.Module) -> torch.nn.Module:
    return copy.deepcopy(twin).double()
