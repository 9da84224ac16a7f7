"""What a checkpoint an epoch costs the training of hresnet on CIFAR-10.

    python -m benchmarks.saving

Alternates stretches of training steps with and without a save at their beginning, as
train.py does it: looking for NaN, digests, a copy for orbax, whose threads then write
while the steps go on. The next stretch begins when all is on the disk. The cost of a
save is the difference of the means; an epoch has 391 steps and one save.
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
    """How much of it."""

    steps: int = 20
    """Training steps in a stretch."""
    pairs: int = 8
    """Stretches of each kind."""


def main(cfg: Saving) -> None:
    from resnet_jax.run.store import Store, is_finite
    from resnet_jax.training.compiling import compile_step

    from resnet_jax import data, models, training
    from resnet_jax.data import augment
    from resnet_jax.data.loader import Feed
    from resnet_jax.devices.mesh import make_mesh, replicate
    from resnet_jax.recipes import RECIPES
    from resnet_jax.training import optim

    recipe = RECIPES["hresnet"][1]
    train, _ = data.load_dataset("cifar10")
    sizes = data.batch_sizes(len(train), recipe.batch_size)
    model = models.create_model("hresnet", num_classes=10)
    schedule = optim.make_schedule(total_steps=len(sizes), **recipe.scheduling)
    tx = optim.make_optimizer(schedule=schedule, **recipe.optimization)
    prepare = augment.make_augment(num_classes=10, **recipe.preprocessing)
    keys = training.make_keys(0)
    state = training.init_state(model, tx, (32, 32, 3), key=keys.init)
    mesh = make_mesh(1)
    state, key = replicate(mesh, (state, keys.augment))
    feed = Feed(mesh, held=True)
    batch = next(feed.examples(train, sizes[:1]))
    train_step = training.make_train_step(model, tx, prepare)
    step, _ = compile_step(train_step, state, [batch], feed.source(train), key)
    blocked, seconds = [], {True: [], False: []}
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder), recipe.keep, {})
        for pair in range(-1, cfg.pairs):  # one to warm up
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
    epoch = alone / cfg.steps * len(sizes)
    print(f"{cfg.steps} steps: {alone:.2f} s, with a save {saving:.2f} s")
    print(f"the loop waits {statistics.mean(blocked):.2f} s in the save itself")
    print(
        f"a save costs {saving - alone:.2f} s (standard error "
        f"{statistics.stdev(spread) / len(spread) ** 0.5:.2f} of {len(spread)} pairs), "
        f"{100 * (saving - alone) / epoch:.2f} % of an epoch of {epoch:.0f} s"
    )


if __name__ == "__main__":
    main(tyro.cli(Saving, description=__doc__))
