"""PyTorch versions of the networks that torchvision does not have."""

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
import torchvision
from torch import nn
from torch.nn import functional as F


class HBlock(nn.Module):
    """The tutorial's block, which has biases and a 1x1 shortcut without BatchNorm."""

    def __init__(self, channels: int, features: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, features, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(features)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(features)
        self.downsample = nn.Conv2d(channels, features, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class HResNet(nn.Module):
    """The tutorial's network, with torch.nn's default initialization."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.b1, self.b2, self.b3 = HBlock(3, 64), HBlock(64, 128), HBlock(128, 256)
        self.pool = nn.ModuleDict({f"b{i}": nn.AvgPool2d(2, 2) for i in (1, 2, 3)})
        self.fc1 = nn.Linear(4096, 2048)
        self.fc2 = nn.Linear(2048, 512)
        self.fc3 = nn.Linear(512, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for name in ("b1", "b2", "b3"):
            x = self.pool[name](getattr(self, name)(x))
        x = F.relu(self.fc1(x.flatten(1)))
        return self.fc3(F.relu(self.fc2(x)))


class CifarBlock(nn.Module):
    """He et al.'s basic block with a parameter-free shortcut (option A).

    The shortcut keeps every `stride`-th pixel and pads the channels with zeros.
    """

    def __init__(self, channels: int, features: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, features, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(features)
        self.conv2 = nn.Conv2d(features, features, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(features)
        self.stride, self.missing = stride, features - channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.missing:
            before = self.missing // 2
            x = x[:, :, :: self.stride, :: self.stride]
            x = F.pad(x, (0, 0, 0, 0, before, self.missing - before))
        return F.relu(y + x)


class CifarResNet(nn.Module):
    """The network of He et al. 2015, section 4.2: 6n + 2 layers in three stages."""

    def __init__(self, n: int, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        channels = 16
        for stage, features in enumerate((16, 32, 64), start=1):
            blocks = []
            for index in range(n):
                stride = 2 if stage > 1 and index == 0 else 1
                blocks.append(CifarBlock(channels, features, stride))
                channels = features
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.fc = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean((2, 3)))


class PreActBlock(nn.Module):
    """The block of He et al. 2016: BatchNorm and ReLU precede each convolution."""

    def __init__(self, channels: int, features: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, features, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(features)
        self.conv2 = nn.Conv2d(features, features, 3, 1, 1, bias=False)
        if stride != 1 or channels != features:
            self.downsample = nn.Conv2d(channels, features, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(x))
        shortcut = self.downsample(y) if hasattr(self, "downsample") else x
        return shortcut + self.conv2(F.relu(self.bn2(self.conv1(y))))


class PreActResNet(nn.Module):
    """Stages of PreActBlocks, then BatchNorm, ReLU and global average pooling."""

    def __init__(
        self, sizes: Sequence[int], widths: Sequence[int], stem: int, num_classes: int
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, stem, 3, padding=1, bias=False)
        channels, self.num_stages = stem, len(sizes)
        for stage, (size, width) in enumerate(zip(sizes, widths, strict=True), start=1):
            blocks = []
            for index in range(size):
                stride = 2 if stage > 1 and index == 0 else 1
                blocks.append(PreActBlock(channels, width, stride))
                channels = width
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.bn = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv1(x)
        for stage in range(1, self.num_stages + 1):
            x = getattr(self, f"layer{stage}")(x)
        return self.fc(F.relu(self.bn(x)).mean((2, 3)))


class ResNet9(nn.Module):
    """DAWNBench's ResNet-9: three max-pooling stages, two with a residual block."""

    def __init__(self, width: int = 64, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        for stage, (before, after) in enumerate(((1, 2), (2, 4), (4, 8)), start=1):
            before, after = before * width, after * width
            layers = {
                "conv": nn.Conv2d(before, after, 3, padding=1, bias=False),
                "pool": nn.MaxPool2d(2, 2),
                "bn": nn.BatchNorm2d(after),
                "relu": nn.ReLU(),
            }
            if stage != 2:
                layers["block"] = CifarBlock(after, after, 1)
            setattr(self, f"layer{stage}", nn.Sequential(OrderedDict(layers)))
        self.fc = nn.Linear(8 * width, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return 0.125 * self.fc(x.amax((2, 3)))


def with_cifar_stem(model: nn.Module) -> nn.Module:
    """Replaces a torchvision ResNet's stem and max pooling with a 3x3 convolution."""
    width = model.conv1.out_channels
    model.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    return model


def create_twin(name: str, stem: str | None = None, num_classes: int = 10) -> nn.Module:
    """Returns the PyTorch version of resnet_jax.create_model(name, stem=stem)."""
    others: dict[str, Callable[[], nn.Module]] = {
        "hresnet": lambda: HResNet(num_classes),
        "resnet9": lambda: ResNet9(num_classes=num_classes),
        "preact_resnet18": lambda: PreActResNet(
            (2, 2, 2, 2), (64, 128, 256, 512), 64, num_classes
        ),
        "wrn28_10": lambda: PreActResNet((4, 4, 4), (160, 320, 640), 16, num_classes),
    }
    if name in others:
        return others[name]()
    make: Callable[..., nn.Module] | None = getattr(torchvision.models, name, None)
    if make is None:
        depth = int(name.removeprefix("resnet"))
        return CifarResNet((depth - 2) // 6, num_classes)
    model = make(num_classes=num_classes)
    return with_cifar_stem(model) if stem == "cifar" else model
