"""The training state and its initialization."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

Batch = dict[str, Any]  # images [B, H, W, C] uint8, labels [B] int32, mask [B] float32
# Maps a function of one seed's arrays over all seeds; see seeds.py.
Each = Callable[[Callable[..., Any]], Callable[..., Any]]


@flax.struct.dataclass
class TrainState:
    """The state that a training step reads and updates; it contains only arrays."""

    step: jax.Array  # [] int32, the number of updates so far
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any = None  # moving average of the variables, if ema_decay is set

    @property
    def variables(self) -> dict[str, Any]:
        """The variables to pass to the model's `apply`."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    def with_variables(self, variables: dict[str, Any]) -> "TrainState":
        """Returns a copy with the given `variables`, for use before the first step."""
        ema = None if self.ema is None else jax.tree.map(jnp.array, variables)
        found: TrainState = self.replace(**variables, ema=ema)  # type: ignore[attr-defined]
        return found

    @property
    def scored(self) -> dict[str, Any]:
        """The variables to evaluate and export: the moving average, if there is one."""
        return self.variables if self.ema is None else self.ema


class Keys(NamedTuple):
    """PRNG keys, one for each purpose."""

    init: jax.Array
    augment: jax.Array


def make_keys(seed: int) -> Keys:
    """Returns the keys for a run, derived from the run's seed."""
    return Keys(*jax.random.split(jax.random.key(seed), len(Keys._fields)))


def init_variables(
    model: nn.Module, image_shape: tuple[int, int, int], *, key: jax.Array
) -> dict[str, Any]:
    """Returns the initial "params" and "batch_stats" for images of `image_shape`."""
    variables = model.init(key, jnp.zeros((1, *image_shape)), train=False)
    return {"batch_stats": {}, **variables}


def variable_shapes(
    model: nn.Module, image_shape: tuple[int, int, int]
) -> dict[str, Any]:
    """Returns the shapes and dtypes of init_variables' result without computing it."""
    init = partial(init_variables, model, image_shape)
    found: dict[str, Any] = jax.eval_shape(init, key=jax.random.key(0))
    return found


def init_state(
    model: nn.Module,
    tx: optax.GradientTransformation,
    image_shape: tuple[int, int, int],
    key: jax.Array,
    has_ema: bool = False,
    each: Each = lambda function: function,
) -> TrainState:
    """Returns the initial state for images of `image_shape`.

    Args:
      model: the network.
      tx: the optimizer.
      image_shape: (H, W, C).
      key: the PRNG key for the run, or one key for each seed.
      has_ema: whether the state has a moving average, which train_step updates with
        ema_decay.
      each: see seeds.make_each.
    """

    def init(key: jax.Array) -> TrainState:
        variables = init_variables(model, image_shape, key=key)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=variables["params"],
            batch_stats=variables["batch_stats"],
            opt_state=tx.init(variables["params"]),
            ema=jax.tree.map(jnp.copy, variables) if has_ema else None,
        )

    state: TrainState = jax.jit(each(init))(key)
    return state
