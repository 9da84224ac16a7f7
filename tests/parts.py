"""Makes the parts of a training setup from fields of the configuration."""

import functools
from typing import Any

import jax
import numpy as np

from resnet_jax import fields
from resnet_jax.config import AugmentConfig, DataConfig, OptimConfig
from resnet_jax.data import augment
from resnet_jax.data.dataset import Dataset, Splits, epoch_batches
from resnet_jax.data.loader import Loader
from resnet_jax.devices.mesh import make_mesh
from resnet_jax.training import optim, state


def make_schedule(*, total_steps=10, steps_per_epoch=1, **values: Any):
    """Returns the schedule of OptimConfig(**values)."""
    return optim.make_schedule(OptimConfig(**values), total_steps, steps_per_epoch)


def make_optimizer(*, trainable=None, lr_scale=None, total_steps=10, **values: Any):
    """Returns the optimizer of OptimConfig(**values), by default plain SGD."""
    cfg = fields.replace(OptimConfig(optimizer="sgd"), **values)
    schedule = optim.make_schedule(cfg, total_steps)
    return optim.make_optimizer(cfg, schedule, trainable=trainable, lr_scale=lr_scale)


def make_preprocess(image_shape, **values: Any):
    """Returns preprocess for AugmentConfig(**values), by default (x - .5) / .25."""
    cfg = fields.replace(AugmentConfig(normalize="half"), **values)
    return augment.make_preprocess(cfg, image_shape)


def make_augment(image_shape, num_classes, **values: Any):
    """Returns augment for AugmentConfig(**values), normalizing as make_preprocess."""
    cfg = fields.replace(AugmentConfig(normalize="half"), **values)
    preprocess = augment.make_preprocess(cfg, image_shape)
    return augment.make_augment(cfg, preprocess, num_classes)


def make_loader(
    dataset, *, mesh=None, seed=0, order=None, epochs=1, held=None, **values: Any
):
    """Returns a loader that trains and scores on `dataset`, by DataConfig(**values)."""
    none = Dataset(dataset.images[:0], np.zeros(0, np.int32), dataset.class_names)
    return Loader(
        make_mesh(1) if mesh is None else mesh,
        Splits(dataset, none, dataset, {}),
        DataConfig(**values),
        order=order or functools.partial(epoch_batches, seed=seed),
        epochs=epochs,
        held=held,
    )


def init_variables(model, image_shape, *, key):
    """Returns training.init_variables, compiled, which is faster than op by op."""
    init = functools.partial(state.init_variables, model, image_shape)
    return jax.jit(init)(key=key)
