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
    from resnet_jax import (
        augment,
        data,
        features,
        freezing,
        models,
        optim,
        training,
        whitening,
    )
    from resnet_jax.compiling import compile_step
    from resnet_jax.diagnostics import make_layer_statistics
    from resnet_jax.evaluation import make_evaluate
    from resnet_jax.hub import adopt, normalization
    from resnet_jax.parallel import replicate
    from resnet_jax.session import open_run, shared_errors
    from resnet_jax.summary import summarize

    # Model and what it sees: descriptions, no arrays.
    with shared_errors(cfg):
        cfg = replace(cfg, normalize=cfg.normalize or normalization(cfg.pretrained))
        shape = data.describe(cfg.dataset, cfg.data_dir, image_size=cfg.image_size)
    model = models.create_model(
        cfg.model, num_classes=shape.num_classes, **cfg.architecture
    )
    prepare = partial(augment.make_augment, num_classes=shape.num_classes)
    prepare_test = prepare(**cfg.preprocessing)
    if cfg.summary:
        print(summarize(model, shape.image_shape))
        return

    with open_run(cfg) as run:
        # Data: uint8 arrays; the order of an epoch is a function of (seed, epoch).
        options = {"rebuild": cfg.rebuild_data, **cfg.loading}
        train, test = data.load_dataset(cfg.dataset, cfg.data_dir, **options)
        train = data.subset(train, cfg.max_train_samples, seed=cfg.seed)
        test = data.subset(test, cfg.max_test_samples, seed=cfg.seed)
        run.note_data(train, test)
        train, held_out = data.hold_out(train, cfg.validation_split, seed=cfg.seed)
        sizes = data.batch_sizes(len(train), cfg.batch_size, drop_last=cfg.drop_last)
        total_steps = min(cfg.epochs * len(sizes), cfg.max_steps or sys.maxsize)
        options = {**cfg.preprocessing, **cfg.augmentation}
        prepare_train = prepare(steps_per_epoch=len(sizes), **options)

        # Randomness: one seed, one key per purpose.
        keys = training.make_keys(cfg.seed)

        # Optimizer: what learns, and how fast.
        trainable = freezing.make_trainable(cfg.freeze, model, shape.image_shape)
        lr_scale = freezing.make_lr_scale(cfg.backbone_lr_scale, model)
        warmup = round(cfg.warmup_epochs * len(sizes))
        steps = {"total_steps": total_steps, "warmup_steps": warmup}
        schedule = optim.make_schedule(**steps, **cfg.scheduling)
        rates = {"schedule": schedule, "lr_scale": lr_scale}
        tx = optim.make_optimizer(trainable=trainable, **rates, **cfg.optimization)

        # State: arrays alone; from the seed, from PyTorch, or from where a run stopped.
        options = {"key": keys.init, "has_ema": cfg.ema_decay > 0}
        state = training.init_state(model, tx, shape.image_shape, **options)
        state = run.restore(state)
        if not run.resumed:
            variables = state.variables
            if cfg.pretrained is not None:
                variables = adopt(variables, model, **cfg.adoption)
            if cfg.whiten:
                variables = whitening.fit(variables, prepare_test, train)
            state = state.with_variables(variables)
        if run.is_finished(len(sizes), total_steps):
            return
        if cfg.cache_features:
            stand_in = features.cache(
                *(model, prepare_test, state.variables, (train, held_out, test)),
                batch_size=cfg.eval_batch_size,
                label_smoothing=cfg.label_smoothing,
            )
            model, prepare_train, prepare_test, (train, held_out, test) = stand_in
        arithmetic = (model, tx, prepare_train)
        frozen = {"trainable": trainable, "backbone_bn": cfg.backbone_bn}
        if cfg.log_gradients:
            first = next(data.train_batches(train, sizes, seed=cfg.seed, epoch=0))
            measure = make_layer_statistics(
                *arithmetic, batch=first, key=keys.augment, **frozen
            )
            run.log_layers(state, measure)

        # Devices: the state is on all, and each has its rows of a batch.
        state, augment_key = replicate(run.mesh, (state, keys.augment))
        feed = run.make_feed(train, held_out, test)

        # Pure functions, compiled once; a step writes over the state it was given.
        scopes = {"accumulate": cfg.accumulate, "local_bn": run.local_bn}
        scopes["ema_decay"] = cfg.ema_decay
        train_step, compile_seconds = compile_step(
            training.make_train_step(*arithmetic, **frozen, **scopes),
            state,
            feed.examples(train, sizes[:total_steps]),
            feed.source(train),
            augment_key,
        )
        evaluate = make_evaluate(model, prepare_test, feed, cfg.eval_batch_size)
        parts = {"val": held_out, "test": test} if len(held_out) else {"test": test}

        for epoch, steps in run.epochs(compile_seconds, schedule):
            batches = feed.train(train, sizes, seed=cfg.seed, epoch=epoch, steps=steps)
            for batch in run.batches(batches):
                state, sums = train_step(state, batch)
                run.step(state, sums)
            run.end_epoch(
                state, lambda s: {name: evaluate(s, v) for name, v in parts.items()}
            )


if __name__ == "__main__":
    import tyro

    from resnet_jax.errors import command_line
    from resnet_jax.recipes import RECIPES

    with command_line("train.py"):
        main(tyro.extras.overridable_config_cli(RECIPES, description=__doc__))
