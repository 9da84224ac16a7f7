"""The recipes: a name to one line about it and its configuration.

What each reached was measured on two cores of a server; RESULTS.md has seeds, spread,
machines and versions. Times are of training, without compilation and evaluation; of
hresnet, resnet20 and resnet18 from the rate of epochs that had the machine alone.
"""

from typing import Any

from resnet_jax.config import Config

_QUICK: dict[str, Any] = {
    "optimizer": "muon",
    "momentum": 0.6,
    "weight_decay": 0.02,
    "schedule": "linear",
    "warmup_epochs": 0.2,
    "crop_padding": 2,
    "crop_fill": "reflect",
    "flip": True,
    "flip_alternating": True,
}
RECIPES: dict[str, tuple[str, Config]] = {
    # python train.py digits
    #   99.7 % of 360 test pictures (three seeds), in 38 s from start to end.
    "digits": (
        "ResNet-8 on scikit-learn's built-in digits: a first run in a minute",
        Config(
            model="resnet8",
            dataset="digits",
            normalize="half",
            epochs=20,
            batch_size=64,
            optimizer="sgd",
            lr=0.1,
            weight_decay=5e-4,
            schedule="cosine",
            crop_padding=2,
            workdir="runs/digits",
        ),
    ),
    # python train.py hresnet --epochs 15
    #   80.9 % of the test pictures, at most 81.8 before (from one start of PyTorch's),
    #   in 51 minutes.
    "hresnet": (
        "the tutorial's network and recipe: Adam 1e-4, no augmentation",
        Config(model="hresnet", normalize="half", workdir="runs/hresnet"),
    ),
    # python train.py fast --whiten --width 16 --epochs 1 --batch-size 128 --lr .1
    #   81.8 % of the test pictures (three seeds, sd .3) in 62 s.
    # python train.py fast
    #   91.5 % (three seeds, sd .1), 92.5 with --tta, in 15 minutes; 90 % in 12.3.
    # python train.py fast --nesterov --whiten --width 64 --epochs 12
    #   93.9 % (one seed), 94.8 with --tta, in 90 minutes.
    "fast": (
        "ResNet-9 with Muon: accuracy by the minute",
        Config(
            model="resnet9",
            width=32,
            epochs=6,
            batch_size=256,
            lr=0.06,
            label_smoothing=0.2,
            **_QUICK,
            workdir="runs/fast",
        ),
    ),
    # python train.py hresnet-plus
    #   90.6 % (three seeds, sd .1), 91.5 with --tta, in 19 minutes.
    "hresnet-plus": (
        "the tutorial's network with a recipe of today",
        Config(
            model="hresnet",
            epochs=5,
            lr=0.02,
            label_smoothing=0.1,
            nesterov=True,
            **_QUICK,
            workdir="runs/hresnet-plus",
        ),
    ),
    # python train.py resnet20
    #   92.3 % (one seed; He et al. 91.25), 93.6 with --tta, in 114 minutes.
    "resnet20": (
        "the network of He et al. 2015, section 4.2, in a third of their steps",
        Config(
            model="resnet20",
            epochs=50,
            lr=0.03,
            **_QUICK,
            workdir="runs/resnet20",
        ),
    ),
    # python train.py resnet18
    #   93.5 % of the test pictures (one seed), 94.2 with --tta, in 102 minutes.
    "resnet18": (
        "ResNet-18 with a 3x3 stem, in two hours of two cores",
        Config(
            model="resnet18",
            stem="cifar",
            epochs=8,
            batch_size=256,
            lr=0.03,
            label_smoothing=0.1,
            **_QUICK,
            workdir="runs/resnet18",
        ),
    ),
    # Run so far from a backbone of five classes of CIFAR-10: 52.5 % of all ten.
    "transfer": (
        "the tutorial's: ResNet-18 of ImageNet, a new head, all else frozen but the "
        "BatchNorm statistics",
        Config(
            model="resnet18",
            pretrained="imagenet",
            fresh_head=True,
            freeze="backbone",
            workdir="runs/transfer",
        ),
    ),
    # From the same: 52.6 %.
    "probe": (
        "a linear classifier on the features of a backbone that does not change",
        Config(
            model="resnet18",
            pretrained="imagenet",
            fresh_head=True,
            freeze="backbone",
            backbone_bn="frozen",
            cache_features=True,
            workdir="runs/probe",
        ),
    ),
    # Run so far on a folder of 180 drawn pictures: 98 % of 60.
    "finetune": (
        "all of ImageNet's ResNet-18, the backbone at a tenth of the head's rate",
        Config(
            model="resnet18",
            pretrained="imagenet",
            fresh_head=True,
            backbone_lr_scale=0.1,
            lr=1e-3,
            schedule="cosine",
            epochs=10,
            crop_padding=4,
            flip=True,
            workdir="runs/finetune",
        ),
    ),
}
