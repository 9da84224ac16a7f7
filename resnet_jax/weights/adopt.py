"""The variables that a run begins with: drawn, published, or fitted to its pictures."""

import flax.linen as nn

from resnet_jax.data import Dataset
from resnet_jax.data.augment import Augment
from resnet_jax.models import whitening
from resnet_jax.training import TrainState, seeds
from resnet_jax.weights import hub


def prepare(
    state: TrainState,
    model: nn.Module,
    *,
    name: str,
    pretrained: str | None = None,
    fresh_head: bool = False,
    whiten: bool = False,
    augment: Augment,
    dataset: Dataset,
) -> TrainState:
    """`state`, of one seed or several, before its first step.

    Args:
      name: of the model.
      pretrained, fresh_head: see hub.adopt; the head of each seed is its own.
      whiten: whether the layer "whiten" is fitted, see whitening.fit; not where it is
        pretrained, with layers that know its axes.
      augment: of evaluation.
      dataset: what is trained on.

    Raises:
      ConfigError, DataError: see hub.adopt.
    """
    if pretrained is None and not whiten:
        return state
    num_seeds = state.step.size
    each = [state.variables]
    if num_seeds > 1:
        each = [seeds.take(state.variables, index) for index in range(num_seeds)]
    if pretrained is not None:
        source = {"source": pretrained, "name": name, "fresh_head": fresh_head}
        each = [hub.adopt(variables, model, **source) for variables in each]
    else:
        fitted = whitening.fit(each[0], augment, dataset)["batch_stats"]
        own = {whitening.LAYER: fitted[whitening.LAYER]}
        each = [{**v, "batch_stats": {**v["batch_stats"], **own}} for v in each]
    return state.with_variables(seeds.stack(each))
