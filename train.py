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

    # Data: uint8 arrays; the order of an epoch is a function of (seed, epoch).
    train, test = data.load_dataset(cfg.dataset, cfg.data_dir)
    train, held_out = data.hold_out(train, cfg.validation_split, seed=cfg.seed)
    image_shape = data.image_shape(train, cfg.image_size)
    steps_per_epoch = data.num_batches(
        len(train), cfg.batch_size, drop_last=cfg.drop_last
    )
    total_steps = min(cfg.epochs * steps_per_epoch, cfg.max_steps or sys.maxsize)

    # Randomness: one seed, one key per purpose.
    keys = training.make_keys(cfg.seed)

    # Model, optimizer and augmentation: descriptions, no arrays.
    model = models.create_model(
        cfg.model, num_classes=len(train.class_names), stem=cfg.stem, dtype=cfg.dtype
    )
    if cfg.summary:
        print(summarize(model, image_shape))
        return
    schedule = optim.make_schedule(
        cfg.schedule,
        lr=cfg.lr,
        total_steps=total_steps,
        milestones=cfg.lr_milestones,
        gamma=cfg.lr_gamma,
    )
    tx = optim.make_optimizer(
        cfg.optimizer,
        schedule,
        momentum=cfg.momentum,
        nesterov=cfg.nesterov,
        weight_decay=cfg.weight_decay,
    )
    prepare = partial(
        augment.make_augment,
        num_classes=len(train.class_names),
        normalization=cfg.normalize,
        image_size=cfg.image_size,
    )
    prepare_train = prepare(
        crop_padding=cfg.crop_padding,
        flip=cfg.flip,
        label_smoothing=cfg.label_smoothing,
    )

    # Pure functions, compiled once; a step writes over the state it was given.
    train_step = jax.jit(
        partial(training.train_step, model, tx, prepare_train), donate_argnums=0
    )
    evaluate = partial(
        training.evaluate,
        jax.jit(partial(training.eval_step, model, prepare())),
        partial(data.eval_batches, batch_size=cfg.eval_batch_size),
    )

    with open_run(cfg) as run:
        # State: arrays alone, from the seed or from where this run stopped.
        state = training.init_state(model, tx, image_shape, key=keys.init)
        state = run.restore(state)

        for epoch, start in run.epochs(
            steps_per_epoch=steps_per_epoch, total_steps=total_steps
        ):
            batches = data.train_batches(
                train,
                cfg.batch_size,
                seed=cfg.seed,
                epoch=epoch,
                start=start,
                drop_last=cfg.drop_last,
            )
            for batch in run.batches(batches):
                state, sums = train_step(state, batch, keys.augment)
                run.step(state, sums)
            run.end_epoch(
                state,
                lr=float(schedule(state.step - 1)),
                validation=evaluate(state, held_out) if len(held_out) else None,
                test=evaluate(state, test),
            )


if __name__ == "__main__":
    import tyro

    from resnet_jax.config import RECIPES
    from resnet_jax.errors import command_line

    with command_line("train.py"):
        main(tyro.extras.overridable_config_cli(RECIPES, description=__doc__))
