"""Train a residual network.

    python train.py digits               scikit-learn's digits: a first run in a minute
    python train.py hresnet              the tutorial's network on CIFAR-10
    python train.py transfer             a pretrained ResNet-18 with a new head
    python train.py resnet18 --help      every field of a recipe is a flag

Writes config.json, metrics.jsonl and checkpoints to the run directory (runs/RECIPE, or
--workdir). Running the same command again resumes from the last checkpoint.
"""

from typing import TYPE_CHECKING

from resnet_jax.config import Config

if TYPE_CHECKING:  # these import JAX
    import flax.linen as nn
    import numpy as np

    from resnet_jax.data.augment import Augment, Preprocess
    from resnet_jax.data.loader import Loader
    from resnet_jax.data.sources import Description
    from resnet_jax.run.run import Run


def main(cfg: Config) -> None:
    """Trains the network that `cfg` describes, or resumes its training."""
    from resnet_jax import data, devices, fields, models, run, weights  # imports JAX

    with devices.start(cfg.devices):
        # The network and its input: only descriptions, no arrays.
        source = data.describe(data.for_training(cfg.data, cfg.augment))
        pretrained, name = cfg.transfer.pretrained, cfg.model.model
        normalize = weights.normalization(pretrained, name)
        normalize = cfg.augment.normalize or normalize or source.normalization
        cfg = fields.replace(cfg, normalize=normalize)
        model = models.create(cfg.model, source.num_classes, source.image_shape[-1])
        preprocess = data.make_preprocess(cfg.augment, source.image_shape)
        if cfg.run.summary:
            print(models.summarize(model, source.image_shape))
            return
        with run.open_run(cfg) as this_run:
            train(cfg, this_run, source, model, preprocess)


def train(
    cfg: Config,
    this_run: "Run",
    source: "Description",
    model: "nn.Module",
    preprocess: "Preprocess",
) -> None:
    """Trains `model` in `this_run`, which is already open."""
    from resnet_jax import devices, run, training, weights

    # Data: uint8 arrays or files, in an order that depends only on (seed, epoch).
    loader, class_weights = load_data(cfg, this_run, source)

    # Optimizer: the trained parameters and their learning rates.
    shape, num_steps = source.image_shape, loader.steps_per_epoch
    trainable = training.make_trainable(cfg.transfer.freeze, model, shape)
    lr_scale = training.make_lr_scale(cfg.transfer.backbone_lr_scale, model)
    schedule = training.make_schedule(cfg.optim, loader.total_steps, num_steps)
    tx = training.make_optimizer(cfg.optim, schedule, trainable, lr_scale)

    # State: only arrays, which come from a checkpoint, pretrained weights or the seed.
    each = training.make_each(cfg.run.num_seeds, this_run.mesh)
    keys = training.make_keys(cfg.seed, cfg.run.num_seeds)
    has_ema = cfg.optim.ema_decay > 0
    state = training.init_state(model, tx, shape, keys.init, has_ema, each)
    state = this_run.restore(state, loader)
    if this_run.is_finished:
        return
    if not this_run.resumed:
        state = weights.load_into(
            state, model, cfg.model.model, cfg.transfer, preprocess, loader.splits.train
        )
    run.announce(cfg, this_run.mesh, state.params, loader, trainable)
    if cfg.transfer.cache_features:
        model, preprocess, loader = training.cache_features(
            model, preprocess, state.variables, loader
        )
    state, key = devices.replicate(this_run.mesh, (state, keys.augment))

    # Pure functions, compiled once; each step donates its input state.
    augment = weighted_augment(cfg, preprocess, source, num_steps, class_weights)
    backbone_bn, parts = cfg.transfer.backbone_bn, cfg.devices.grad_accum_steps
    local_bn = None if cfg.devices.sync_bn else this_run.mesh
    ema_decay = training.make_ema_decay(cfg, num_steps)
    step = training.make_train_step(
        model, tx, augment, trainable, backbone_bn, parts, local_bn, ema_decay
    )
    measure = training.make_layer_statistics(
        model, tx, augment, loader.first_batch, keys.augment, trainable, backbone_bn
    )
    train_step, seconds = training.compile_step(each(step), state, loader, key)
    evaluate = training.make_evaluate(model, preprocess, loader, each=each)

    for epoch, start in this_run.epochs(state, schedule, seconds, measure):
        for batch in this_run.track(loader.train(epoch, start)):
            state, sums = train_step(state, batch)
            this_run.record(state, sums)
        this_run.end_epoch(state, evaluate, loader.splits.scored)


def load_data(
    cfg: Config, this_run: "Run", source: "Description"
) -> tuple["Loader", "np.ndarray | None"]:
    """Returns the loader, and the weights of the classes if they have any.

    The order of the images in an epoch and the augmentation on the host depend only on
    (seed, epoch).
    """
    from resnet_jax import data, training

    splits = data.load(cfg.data, source)
    class_weights, splits = data.load_class_weights(cfg.augment.class_weights, splits)
    splits = splits._replace(
        train=data.drawn(splits.train, cfg.augment, cfg.data, cfg.seed)
    )
    labels = splits.train.labels if cfg.data.sampler == "balanced" else None
    repeats = cfg.data.repeated_augmentation
    order = training.make_order(cfg.seed, cfg.run.num_seeds, labels, repeats)
    return data.Loader(
        this_run.mesh, splits, cfg.data, order, cfg.run.epochs, cfg.run.max_steps
    ), class_weights


def weighted_augment(
    cfg: Config,
    preprocess: "Preprocess",
    source: "Description",
    num_steps: int,
    class_weights: "np.ndarray | None",
) -> "Augment":
    """Returns the augmentation on the device, at the image size used for training.

    Args:
      num_steps: number of steps per epoch.
      class_weights: the weights of the classes in the loss, or None.
    """
    from resnet_jax import data

    if cfg.data.train_size is not None:
        preprocess = data.make_preprocess(cfg.augment, data.train_shape(cfg.data))
    num_classes = source.num_classes
    augment = data.make_augment(cfg.augment, preprocess, num_classes, num_steps)
    if class_weights is None:
        return augment
    is_mixed = cfg.augment.mixup > 0 or cfg.augment.cutmix > 0
    return data.weigh(augment, class_weights, is_mixed=is_mixed)
