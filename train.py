"""Train a residual network.

    python train.py digits               scikit-learn's digits: a first run in a minute
    python train.py hresnet              the tutorial's network on CIFAR-10
    python train.py resnet18 --help      every field of a recipe is a flag

Leaves config.json, metrics.jsonl and checkpoints in the run directory (runs/RECIPE, or
--workdir); the same command again resumes from the last checkpoint.
"""

import sys
from functools import partial

from resnet_jax.config import Config


def main(cfg: Config) -> None:
    import jax

    from resnet_jax import augment, data, models, optim, training
    from resnet_jax.run import open_run
    from resnet_jax.summary import summarize

    # Model and what it sees: descriptions, no arrays.
    num_classes, image_shape = data.describe(cfg.dataset, image_size=cfg.image_size)
    model = models.create_model(
        cfg.model, num_classes=num_classes, stem=cfg.stem, dtype=cfg.dtype
    )
    prepare = partial(
        augment.make_augment, num_classes=num_classes, **cfg.preprocessing
    )
    prepare_train, prepare_test = prepare(**cfg.augmentation), prepare()
    if cfg.summary:
        print(summarize(model, image_shape))
        return

    with open_run(cfg) as run:
        # Data: uint8 arrays; the order of an epoch is a function of (seed, epoch).
        train, test = data.load_dataset(cfg.dataset, cfg.data_dir)
        train, held_out = data.hold_out(train, cfg.validation_split, seed=cfg.seed)
        sizes = data.batch_sizes(len(train), cfg.batch_size, drop_last=cfg.drop_last)
        batches = partial(data.train_batches, train, sizes, seed=cfg.seed)
        total_steps = min(cfg.epochs * len(sizes), cfg.max_steps or sys.maxsize)

        # Randomness: one seed, one key per purpose.
        keys = training.make_keys(cfg.seed)

        # State: arrays alone, from the seed or from where this run stopped.
        schedule = optim.make_schedule(total_steps=total_steps, **cfg.scheduling)
        tx = optim.make_optimizer(schedule=schedule, **cfg.optimization)
        state = training.init_state(model, tx, image_shape, key=keys.init)
        state = run.restore(state)
        if run.is_finished(total_steps):
            return

        # Pure functions, compiled once; a step writes over the state it was given.
        train_step, compile_seconds = training.compile_step(
            partial(training.train_step, model, tx, prepare_train),
            state,
            data.example_batches(train, sizes[:total_steps]),
            keys.augment,
        )
        evaluate = partial(
            training.evaluate,
            jax.jit(partial(training.eval_step, model, prepare_test)),
            partial(data.eval_batches, batch_size=cfg.eval_batch_size),
        )

        for epoch, start in run.epochs(
            steps_per_epoch=len(sizes),
            total_steps=total_steps,
            compile_seconds=compile_seconds,
        ):
            for batch in run.batches(batches(epoch=epoch, start=start)):
                state, sums = train_step(state, batch, keys.augment)
                run.step(state, sums)
            run.end_epoch(
                state,
                schedule=schedule,
                validation=evaluate(state, held_out) if len(held_out) else None,
                test=evaluate(state, test),
            )


if __name__ == "__main__":
    import tyro

    from resnet_jax.errors import command_line
    from resnet_jax.recipes import RECIPES

    with command_line("train.py"):
        main(tyro.extras.overridable_config_cli(RECIPES, description=__doc__))
