"""Initial weights of a run: random, pretrained, or fitted to the training images."""

from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import numpy as np

from resnet_jax.config import TransferConfig
from resnet_jax.data.augment import Preprocess
from resnet_jax.data.dataset import Dataset, subset
from resnet_jax.training import seeds
from resnet_jax.training.state import TrainState
from resnet_jax.weights import pretrained

_AT_A_TIME = 100  # images per chunk; their 3x3 patches need nine times as much memory


def load_into(
    state: TrainState,
    model: nn.Module,
    name: str,
    cfg: TransferConfig,
    preprocess: Preprocess,
    train: Dataset,
) -> TrainState:
    """Returns the initial `state`, with pretrained weights if `cfg` names any.

    With several seeds, a last layer that is not pretrained differs between the seeds.
    Without pretrained weights, a whitening layer (see models/whitening.py) is fitted to
    the training images.

    Args:
      name: the model's name.

    Raises:
      ConfigError, DataError: if the weights cannot be used (see
        pretrained.begin_from).
    """

    def inputs(count: int) -> Iterator[np.ndarray]:
        some = subset(train, count)
        for start in range(0, len(some), _AT_A_TIME):
            part = some.take(slice(start, start + _AT_A_TIME))
            yield np.asarray(preprocess(np.asarray(part.images)))

    def begin(variables: dict[str, Any]) -> dict[str, Any]:
        if cfg.pretrained is None:
            fitted: dict[str, Any] = model.fit_to_images(variables, inputs)
            return fitted
        return pretrained.begin_from(
            variables,
            model,
            source=cfg.pretrained,
            name=name,
            key=cfg.weights_key,
            reset_head=cfg.reset_head,
        )

    return seeds.for_each(begin, state)
