"""The features of a frozen backbone, computed once, and the layer that learns."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import flax.linen as nn

from resnet_jax.data import Dataset, eval_batches
from resnet_jax.data.augment import Augment, make_features_augment
from resnet_jax.models.resnet import Head
from resnet_jax.training import evaluation


def head_of(model: nn.Module) -> Head:
    """The last layer of `model` alone; of the model's variables it reads its own."""
    return Head(
        layer=model.head,
        num_classes=model.num_classes,
        logit_scale=model.logit_scale,
        dtype=model.dtype,
        param_dtype=model.param_dtype,
    )


def cache(
    model: nn.Module,
    augment: Augment,
    variables: dict[str, Any],
    datasets: Iterable[Dataset],
    *,
    batch_size: int,
    label_smoothing: float = 0.0,
) -> tuple[Head, Augment, Augment, list[Dataset]]:
    """What stands in for the network, its two augmentations and the data sets.

    See compute; the augmentations are those of training and of evaluation.
    """
    cached = [
        compute(model, augment, variables, dataset, batch_size=batch_size)
        for dataset in datasets
    ]
    prepare = partial(make_features_augment, num_classes=model.num_classes)
    return (
        head_of(model),
        prepare(label_smoothing=label_smoothing),
        prepare(),
        cached,
    )


def compute(
    model: nn.Module,
    augment: Augment,
    variables: dict[str, Any],
    dataset: Dataset,
    *,
    batch_size: int,
) -> Dataset:
    """`dataset` with the features [N, F] float32 of its pictures, in inference mode.

    Args:
      model: with any number of classes; its last layer is not applied.
      augment: of evaluation, whose targets are not used.
      variables: the model's.
    """
    backbone = model.clone(num_classes=0)
    batches = partial(eval_batches, batch_size=batch_size)
    found = evaluation.predict(backbone, augment, variables, batches, dataset)
    return Dataset(found, dataset.labels, dataset.class_names)
