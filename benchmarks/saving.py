"""Measures what one checkpoint per epoch costs when training hresnet on CIFAR-10.

    python -m benchmarks.saving

Two kinds of series of training steps alternate: those that start with a save and those
that do not. A save works as in train.py: it checks the state for NaN, computes digests,
and makes a copy of the state, which orbax's threads write to disk during the steps. The
next series starts once everything is on disk. The cost of a save is the difference
between the mean times of the two kinds of series. An epoch has 391 steps and one save.
"""

import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro


@dataclass(frozen=True)
class Saving:
    """Options of the benchmark."""

    steps: int = 20
    """Training steps per series."""
    pairs: int = 8
    """Number of series of each kind."""


def main(cfg: Saving) -> None:
    from resnet_jax import data, devices, models, training
    from resnet_jax.recipes import RECIPES
    from resnet_jax.run.checkpoints import Checkpoints, is_finite

    recipe = RECIPES["hresnet"][1]
    described = data.describe(recipe.data)
    mesh = devices.make_mesh(1)
    order = training.make_order(0, 1)
    splits = data.load(recipe.data, described)
    loader = data.Loader(mesh, splits, recipe.data, order=order, held=True)
    model = models.create(recipe.model, described.num_classes)
    schedule = training.make_schedule(recipe.optim, loader.total_steps)
    tx = training.make_optimizer(recipe.optim, schedule)
    preprocess = data.make_preprocess(recipe.augment, described.image_shape)
    augment = data.make_augment(recipe.augment, preprocess, described.num_classes)
    keys = training.make_keys(0, 1)
    state = training.init_state(model, tx, described.image_shape, key=keys.init)
    state, key = devices.replicate(mesh, (state, keys.augment))
    train_step = training.make_train_step(model, tx, augment)
    step, _ = training.compile_step(train_step, state, loader, key)
    batch = next(loader.train(0))
    blocked, seconds = [], {True: [], False: []}
    with tempfile.TemporaryDirectory() as folder:
        store = Checkpoints(Path(folder), recipe.run.keep_checkpoints, {})
        for pair in range(-1, cfg.pairs):  # the first pair is a warm-up
            for saves in (True, False) if pair % 2 else (False, True):
                begun = time.monotonic()
                if saves:
                    assert is_finite(state)
                    manifest: dict[str, Any] = {"metrics": []}
                    store.save(int(state.step), state, manifest)
                    blocked.append(time.monotonic() - begun)
                for _ in range(cfg.steps):
                    state, sums = step(state, batch)
                sums["loss"].block_until_ready()
                seconds[saves].append(time.monotonic() - begun)
                store.wait()
        store.close()
    del blocked[0], seconds[True][0], seconds[False][0]
    alone, saving = (statistics.mean(seconds[kind]) for kind in (False, True))
    spread = [a - b for a, b in zip(seconds[True], seconds[False], strict=True)]
    epoch = alone / cfg.steps * loader.steps_per_epoch
    print(f"{cfg.steps} steps: {alone:.2f} s without and {saving:.2f} s with a save")
    print(
        f"the save itself blocks the training loop for {statistics.mean(blocked):.2f} s"
    )
    print(
        f"a save costs {saving - alone:.2f} s (standard error "
        f"{statistics.stdev(spread) / len(spread) ** 0.5:.2f} s from {len(spread)} "
        f"pairs), which is {100 * (saving - alone) / epoch:.2f} % of an epoch of "
        f"{epoch:.0f} s"
    )


if __name__ == "__main__":
    main(tyro.cli(Saving, description=__doc__))
