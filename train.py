"""Train a residual network.

    python train.py digits               scikit-learn's digits: a first run in a minute
    python train.py hresnet              the tutorial's network on CIFAR-10
    python train.py transfer             ResNet-18 of ImageNet with a new head
    python train.py resnet18 --help      every field of a recipe is a flag

Leaves config.json, metrics.jsonl and checkpoints in the run directory (runs/RECIPE, or
--workdir); the same command again resumes from the last checkpoint.
"""

import sys
from dataclasses import replace
from functools import partial

from resnet_jax.config import Config


def main(cfg: Config) -> None:
    from resnet_jax import data, models
    from resnet_jax.data import augment
    from resnet_jax.devices.mesh import replicate
    from resnet_jax.models.summary import summarize
    from resnet_jax.run.session import open_run, shared_errors
    from resnet_jax.training import (
        features,
        freezing,
        init_state,
        make_keys,
        make_train_step,
        optim,
    )
    from resnet_jax.training.compiling import compile_step
    from resnet_jax.training.diagnostics import make_layer_statistics
    from resnet_jax.training.evaluation import make_evaluate
    from resnet_jax.weights import adopt
    from resnet_jax.weights.hub import normalization

    # Model and what it sees: descriptions, no arrays.
    with shared_errors(cfg):
        cfg = replace(cfg, normalize=cfg.normalize or normalization(cfg.pretrained))
        shape = data.describe(cfg.dataset, cfg.data_dir, image_size=cfg.image_size)
    num_classes = shape.num_classes
    model = models.create_model(cfg.model, num_classes=num_classes, **cfg.architecture)
    prepare = partial(augment.make_augment, num_classes=num_classes)
    prepare_test = prepare(**cfg.preprocessing)
    if cfg.summary:
        print(summarize(model, shape.image_shape))
        return

    with open_run(cfg) as run:
        # Data: uint8 arrays; the order of an epoch is a function of (seed, epoch).
        options = {"rebuild": cfg.rebuild_data, **cfg.loading}
        train, test = data.load_dataset(cfg.dataset, cfg.data_dir, **options)
        train = data.subset(train, cfg.max_train_samples)
        test = data.subset(test, cfg.max_test_samples)
        run.note_data(train, test)
        train, held_out = data.hold_out(train, cfg.validation_split)
        sizes = data.batch_sizes(len(train), cfg.batch_size, drop_last=cfg.drop_last)
        total_steps = min(cfg.epochs * len(sizes), cfg.max_steps or sys.maxsize)
        options = {**cfg.preprocessing, **cfg.augmentation}
        prepare_train = prepare(steps_per_epoch=len(sizes), **options)

        # Randomness: one seed, one key per purpose; of several seeds, as many keys.
        keys = make_keys(cfg.seed, cfg.num_seeds)

        # Optimizer: what learns, and how fast.
        trainable = freezing.make_trainable(cfg.freeze, model, shape.image_shape)
        lr_scale = freezing.make_lr_scale(cfg.backbone_lr_scale, model)
        options = {"steps_per_epoch": len(sizes), **cfg.scheduling}
        schedule = optim.make_schedule(total_steps=total_steps, **options)
        options = {"lr_scale": lr_scale, "trainable": trainable, **cfg.optimization}
        tx = optim.make_optimizer(schedule=schedule, **options)

        # State: arrays alone; from the seed, from PyTorch, or from where a run stopped.
        options = {"key": keys.init, "has_ema": cfg.ema_decay > 0}
        state = init_state(model, tx, shape.image_shape, **options)
        state = run.restore(state)
        if not run.resumed:
            options = {"augment": prepare_test, "dataset": train, **cfg.beginning}
            state = adopt.prepare(state, model, **options)
        if run.is_finished(len(sizes), total_steps):
            return
        if cfg.cache_features:
            whole = (model, prepare_test, state.variables, (train, held_out, test))
            stand_in = features.cache(*whole, **cfg.caching)
            model, prepare_train, prepare_test, (train, held_out, test) = stand_in
        frozen = {"trainable": trainable, "backbone_bn": cfg.backbone_bn}
        if cfg.log_gradients:
            first = next(data.train_batches(train, sizes, seed=cfg.seed, epoch=0))
            options = {"batch": first, "key": keys.augment, **frozen}
            measure = make_layer_statistics(model, tx, prepare_train, **options)
            run.log_layers(state, measure)

        # Devices: the state is on all, and each has its rows of a batch.
        state, augment_key = replicate(run.mesh, (state, keys.augment))
        feed = run.make_feed(train, held_out, test)

        # Pure functions, compiled once; a step writes over the state it was given.
        options = {"local_bn": run.local_bn, **frozen, **cfg.stepping}
        train_step, compile_seconds = compile_step(
            run.each(make_train_step(model, tx, prepare_train, **options)),
            state,
            feed.examples(train, sizes[:total_steps], cfg.num_seeds),
            feed.source(train),
            augment_key,
        )
        options = {"batch_size": cfg.eval_batch_size, "each": run.each}
        evaluate = make_evaluate(model, prepare_test, feed, **options)
        parts = {"val": held_out, "test": test} if len(held_out) else {"test": test}

        for epoch, steps in run.epochs(compile_seconds, schedule):
            options = {"epoch": epoch, "steps": steps, **cfg.ordering}
            for batch in run.batches(feed.train(train, sizes, **options)):
                state, sums = train_step(state, batch)
                run.step(state, sums)
            run.end_epoch(
                state, lambda s: {name: evaluate(s, v) for name, v in parts.items()}
            )


if __name__ == "__main__":
    import tyro

    from resnet_jax.commands.command_line import command_line
    from resnet_jax.recipes import RECIPES

    with command_line("train.py"):
        main(tyro.extras.overridable_config_cli(RECIPES, description=__doc__))
