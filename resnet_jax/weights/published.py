"""Names of published weights files, with the first digits of each file's sha256."""

import logging
import os
import re
from pathlib import Path

from resnet_jax import files

log = logging.getLogger(__name__)

SHIPPED = ("resnet20-cifar10",)  # folders in this package that `export` wrote
URL = "https://download.pytorch.org/models/"
# torchvision's weights. Each name ends in the first eight digits of the file's sha256.
IMAGENET = {
    "resnet18": "resnet18-f37072fd.pth",
    "resnet34": "resnet34-b627a593.pth",
    "resnet50": "resnet50-0676ba61.pth",
    "resnet101": "resnet101-63fe2227.pth",
    "resnet152": "resnet152-394f9c45.pth",
    "wide_resnet50_2": "wide_resnet50_2-95faca4d.pth",
    "wide_resnet101_2": "wide_resnet101_2-32ee1156.pth",
    "resnext50_32x4d": "resnext50_32x4d-7cdf4587.pth",
    "resnext101_32x8d": "resnext101_32x8d-8ba56ff5.pth",
    "resnext101_64x4d": "resnext101_64x4d-173b62eb.pth",
}
IMAGENET_V2 = {
    "resnet50": "resnet50-11ad3fa6.pth",
    "resnet101": "resnet101-cd907fc2.pth",
    "resnet152": "resnet152-f82ba261.pth",
    "wide_resnet50_2": "wide_resnet50_2-9ba9bcbe.pth",
    "wide_resnet101_2": "wide_resnet101_2-d733dc28.pth",
    "resnext50_32x4d": "resnext50_32x4d-1a0047aa.pth",
    "resnext101_32x8d": "resnext101_32x8d-110c445d.pth",
}


def resize_of(source: str, model: str) -> int:
    """Returns the size to which torchvision resizes an image's shorter side."""
    is_new = source == "imagenet-v2" or model == "resnext101_64x4d"
    return 232 if is_new else 256


# akamaster's and chenyaofo's weights for CIFAR.
_CIFAR = (
    *("resnet20-12fca82f.th", "resnet32-d509ac18.th", "resnet44-014dd654.th"),
    *("resnet56-4bfd9763.th", "resnet110-1d1ed7c2.th"),
    *("cifar10_resnet20-4118986f.pt", "cifar10_resnet32-ef93fc4d.pt"),
    *("cifar10_resnet44-2a3cabcb.pt", "cifar10_resnet56-187c023a.pt"),
    *("cifar100_resnet20-23dac2f1.pt", "cifar100_resnet32-84213ce6.pt"),
    *("cifar100_resnet44-ffe32858.pt", "cifar100_resnet56-f2eff4c8.pt"),
)


def check_name(path: Path) -> None:
    """Compares the digits at the end of a file's name with the file's sha256.

    For published files, they must match. Other names may end in a date or a run number,
    so a mismatch is only logged.

    Raises:
      DataError: if a published file is damaged.
    """
    digits = re.search(r"-([0-9a-f]{8,64})\.[^.]+$", path.name)
    if digits is None:
        return
    if path.name in {*IMAGENET.values(), *IMAGENET_V2.values(), *_CIFAR}:
        files.check_sha256(path, digits[1])
    elif not files.file_digest(path).startswith(digits[1]):
        log.info(
            "weights: %s: the digits in its name differ from its sha256", path.name
        )


def is_shipped(source: str) -> bool:
    """Returns whether `source` names this package's weights rather than local files."""
    lying = (source, f"{source}/config.json", f"{source}/model.safetensors")
    return source in SHIPPED and not any(map(os.path.isfile, lying))
