"""Caches a frozen backbone's features, on which only the last layer is trained."""

from typing import Any

import flax.linen as nn

from resnet_jax.data.augment import Preprocess
from resnet_jax.data.dataset import Dataset
from resnet_jax.data.loader import Loader
from resnet_jax.models.resnet import Head
from resnet_jax.training import evaluation


def head_of(model: nn.Module) -> Head:
    """Returns the last layer as a module that takes the variables of `model`."""
    return Head(
        layer=model.head,
        num_classes=model.num_classes,
        logit_scale=model.logit_scale,
        dtype=model.dtype,
        param_dtype=model.param_dtype,
    )


def cache_features(
    model: nn.Module, preprocess: Preprocess, variables: dict[str, Any], loader: Loader
) -> tuple[Head, Preprocess, Loader]:
    """Returns replacements for the network, its preprocessing and its loader.

    The replacements operate on cached features instead of images.
    """
    splits = loader.splits
    cached = splits._replace(
        train=compute(model, preprocess, variables, loader, splits.train),
        validation=compute(model, preprocess, variables, loader, splits.validation),
        test=compute(model, preprocess, variables, loader, splits.test),
    )
    return head_of(model), lambda features: features, loader.with_splits(cached)


def compute(
    model: nn.Module,
    preprocess: Preprocess,
    variables: dict[str, Any],
    loader: Loader,
    dataset: Dataset,
) -> Dataset:
    """Returns `dataset` with float32 features [N, F] instead of images.

    Args:
      model: a model with any number of classes; its last layer is not applied.
      variables: the model's variables.
    """
    backbone = model.clone(num_classes=0)
    found = evaluation.predict(
        backbone, preprocess, loader, variables, dataset, "caching features"
    )
    return Dataset(found, dataset.labels, dataset.class_names)
