"""The training step as a program for each form of a batch, compiled beforehand."""

import time
from collections.abc import Callable, Iterable
from functools import partial

import jax

from resnet_jax.data.loader import Batch, Source, fetch
from resnet_jax.training import TrainState, metrics

Step = Callable[[TrainState, Batch, jax.Array], tuple[TrainState, metrics.Sums]]


def compile_step(
    step: Step,
    state: TrainState,
    batches: Iterable[Batch],
    source: Source,
    key: jax.Array,
) -> tuple[Callable[[TrainState, Batch], tuple[TrainState, metrics.Sums]], float]:
    """`step` for the forms of `batches`, and the seconds that compiling it took.

    Nothing runs. The compiled step is called as step(state, batch); it writes over the
    state that it is given. Of a batch of [steps, rows] it does the steps one after the
    other, and gives the sums of each. Of several seeds, batches have [seeds, rows].

    Args:
      state, source: on the devices, as they will be; so is what comes back.
      key: the same, of the step: [], or [seeds].

    Raises:
      ConfigError: the model cannot train on one of the forms.
    """
    begun = time.monotonic()
    fed = partial(_fed, step)
    sharding = state.step.sharding
    if jax.config.jax_debug_nans:  # JAX runs it again, op by op, on the same arguments
        jitted = jax.jit(fed, out_shardings=sharding)
        return lambda state, batch: jitted(state, batch, source, key), 0.0
    jitted = jax.jit(fed, donate_argnums=0, out_shardings=sharding)
    compiled = {
        _form(batch): jitted.lower(state, batch, source, key).compile()
        for batch in batches
    }

    def run(state: TrainState, batch: Batch) -> tuple[TrainState, metrics.Sums]:
        return compiled[_form(batch)](state, batch, source, key)

    return run, time.monotonic() - begun


def _fed(
    step: Step, state: TrainState, batch: Batch, source: Source, key: jax.Array
) -> tuple[TrainState, metrics.Sums]:
    def one(state: TrainState, batch: Batch) -> tuple[TrainState, metrics.Sums]:
        return step(state, fetch(source, batch), key)

    if len(_form(batch)) == key.ndim + 1:
        return one(state, batch)
    return jax.lax.scan(one, state, batch)


def _form(batch: Batch) -> tuple[int, ...]:
    """([steps,] [seeds,] rows) of a batch."""
    return batch["indices" if "indices" in batch else "labels"].shape
