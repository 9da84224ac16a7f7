"""Named recipes, each with a configuration and a one-line description.

The comments state the test accuracies of networks trained on two cores of a server;
RESULTS.md lists seeds, standard deviations, machines and versions. The times are
training times, excluding compilation and evaluation; the times of hresnet, resnet20 and
resnet18 are computed from the throughput measured during epochs on an otherwise idle
machine.
"""

from dataclasses import replace

from resnet_jax.config import (
    AugmentConfig,
    Config,
    DataConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TransferConfig,
)

_MUON = OptimConfig(
    optimizer="muon",
    momentum=0.6,
    weight_decay=0.02,
    schedule="linear",
    warmup_epochs=0.2,
)
_CROP_AND_FLIP = AugmentConfig(crop_padding=2, crop_fill="reflect", flip="alternating")
_RESNET18 = ModelConfig(model="resnet18")

RECIPES: dict[str, tuple[str, Config]] = {
    # python train.py digits
    #   Classifies 99.7 % of 360 test images correctly (three seeds), in 38 s from start
    #   to finish.
    "digits": (
        "ResNet-8 on scikit-learn's digits: a first run in a minute",
        Config(
            model=ModelConfig(model="resnet8"),
            data=DataConfig(dataset="digits", batch_size=64),
            augment=AugmentConfig(normalize="half", crop_padding=2),
            optim=OptimConfig(
                optimizer="sgd", lr=0.1, weight_decay=5e-4, schedule="cosine"
            ),
            run=RunConfig(epochs=20, workdir="runs/digits"),
        ),
    ),
    # python train.py hresnet --epochs 15
    #   Reaches 80.9 %, and 81.8 % in the best epoch, in 51 minutes (one run from
    #   PyTorch's initial weights).
    "hresnet": (
        "the tutorial's network and recipe: Adam at 1e-4, no augmentation",
        Config(augment=AugmentConfig(normalize="half")),
    ),
    # python train.py fast --whiten --width 16 --epochs 1 --batch-size 128 --lr .1
    #   Reaches 81.8 % (three seeds, standard deviation 0.3) in 62 s.
    # python train.py fast
    #   Reaches 91.5 %, or 92.5 % with --tta, in 15 minutes (three seeds, standard
    #   deviation 0.1). It reaches 90 % in 12.3 minutes.
    # python train.py fast --nesterov --whiten --width 64 --epochs 12
    #   Reaches 93.9 %, or 94.8 % with --tta, in 90 minutes (one seed).
    "fast": (
        "ResNet-9 with Muon on CIFAR-10: 91 % accuracy in minutes",
        Config(
            model=ModelConfig(model="resnet9", width=32),
            data=DataConfig(batch_size=256),
            augment=replace(_CROP_AND_FLIP, label_smoothing=0.2),
            optim=replace(_MUON, lr=0.06),
            run=RunConfig(epochs=6, workdir="runs/fast"),
        ),
    ),
    # python train.py hresnet-plus
    #   Reaches 90.6 %, or 91.5 % with --tta, in 19 minutes (three seeds, standard
    #   deviation 0.1).
    "hresnet-plus": (
        "the tutorial's network with a modern recipe: Muon and augmentation",
        Config(
            augment=replace(_CROP_AND_FLIP, label_smoothing=0.1),
            optim=replace(_MUON, lr=0.02, nesterov=True),
            run=RunConfig(epochs=5, workdir="runs/hresnet-plus"),
        ),
    ),
    # python train.py resnet20
    #   Reaches 92.3 %, or 93.6 % with --tta, in 114 minutes (one seed). He et al.
    #   report 91.25 %.
    "resnet20": (
        (
            "ResNet-20 of He et al. 2015, section 4.2, trained for a third of the "
            "original steps"
        ),
        Config(
            model=ModelConfig(model="resnet20"),
            augment=_CROP_AND_FLIP,
            optim=replace(_MUON, lr=0.03),
            run=RunConfig(epochs=50, workdir="runs/resnet20"),
        ),
    ),
    # python train.py resnet18
    #   Reaches 93.5 %, or 94.2 % with --tta, in 102 minutes (one seed).
    "resnet18": (
        "ResNet-18 with a 3x3 stem on CIFAR-10; takes 102 minutes on two cores",
        Config(
            model=replace(_RESNET18, stem="cifar"),
            data=DataConfig(batch_size=256),
            augment=replace(_CROP_AND_FLIP, label_smoothing=0.1),
            optim=replace(_MUON, lr=0.03),
            run=RunConfig(epochs=8, workdir="runs/resnet18"),
        ),
    ),
    # With a backbone trained on five classes of CIFAR-10, this recipe reaches 52.5 % on
    # all ten classes.
    "transfer": (
        "ResNet-18 pretrained on ImageNet, with a new head; all other layers are "
        "frozen, except for their running statistics",
        Config(
            model=_RESNET18,
            transfer=TransferConfig(
                pretrained="imagenet", reset_head=True, freeze="backbone"
            ),
            run=RunConfig(workdir="runs/transfer"),
        ),
    ),
    # With the same backbone as `transfer`, this recipe reaches 52.6 %.
    "probe": (
        "a linear classifier on the features of a frozen ResNet-18",
        Config(
            model=_RESNET18,
            transfer=TransferConfig(
                pretrained="imagenet",
                reset_head=True,
                freeze="backbone",
                backbone_bn="frozen",
                cache_features=True,
            ),
            run=RunConfig(workdir="runs/probe"),
        ),
    ),
    # Trained on a folder of 180 synthetic images, the network reaches 98 % on 60 test
    # images.
    "finetune": (
        "fine-tunes all layers of a ResNet-18 pretrained on ImageNet; the "
        "backbone's learning rate is a tenth of the head's",
        Config(
            model=_RESNET18,
            augment=AugmentConfig(crop_padding=4, flip="random"),
            transfer=TransferConfig(
                pretrained="imagenet", reset_head=True, backbone_lr_scale=0.1
            ),
            optim=OptimConfig(lr=1e-3, schedule="cosine"),
            run=RunConfig(epochs=10, workdir="runs/finetune"),
        ),
    ),
    # This recipe has not yet been run in full. torchvision reports 69.76 % for resnet18
    # and 76.13 % for resnet50.
    "imagenet": (
        "torchvision's IMAGENET1K_V1 recipe for a folder of images: 90 epochs (not "
        "yet run in full)",
        Config(
            model=ModelConfig(model="resnet50"),
            data=DataConfig(dataset="folder", image_size=224, batch_size=256),
            augment=AugmentConfig(
                normalize="imagenet", random_resized_crop=True, flip="random"
            ),
            optim=OptimConfig(
                optimizer="sgd",
                lr=0.1,
                weight_decay=1e-4,
                schedule="step",
                lr_step_size=30,
            ),
            run=RunConfig(epochs=90, workdir="runs/imagenet"),
        ),
    ),
    # This recipe has not yet been run in full. torchvision reports 80.86 % for
    # resnet50.
    "imagenet-v2": (
        "torchvision's IMAGENET1K_V2 recipe for a folder of images: 600 epochs (not "
        "yet run in full)",
        Config(
            model=ModelConfig(model="resnet50"),
            data=DataConfig(
                dataset="folder",
                image_size=224,
                resize=232,
                train_size=176,
                repeated_augmentation=4,
                batch_size=1024,
            ),
            augment=AugmentConfig(
                normalize="imagenet",
                random_resized_crop=True,
                flip="random",
                auto_augment="ta_wide",
                random_erasing=0.1,
                mixup=0.2,
                cutmix=1.0,
                label_smoothing=0.1,
            ),
            optim=OptimConfig(
                optimizer="sgd",
                lr=0.5,
                weight_decay=2e-5,
                norm_weight_decay=0.0,
                ema_decay=0.99998,
                ema_steps=32,
                schedule="cosine",
                sched_on_updates=False,
                warmup_epochs=5.0,
                warmup_decay=0.01,
            ),
            run=RunConfig(epochs=600, workdir="runs/imagenet-v2"),
        ),
    ),
}
