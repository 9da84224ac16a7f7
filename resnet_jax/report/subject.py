"""What is evaluated: a run, an exported folder, or bare weights."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn

from resnet_jax import fields
from resnet_jax.config import AugmentConfig, Config, DataConfig, ModelConfig
from resnet_jax.data import sources
from resnet_jax.data.augment import parse_normalization
from resnet_jax.data.dataset import (
    UNREAD,
    Dataset,
    changed,
    differing,
    digest,
    subset,
)
from resnet_jax.errors import DataError
from resnet_jax.models import factory
from resnet_jax.report.options import OF_RUNS, SubjectConfig
from resnet_jax.run import restore
from resnet_jax.run.directory import moved_data_dir, read_classes, read_run
from resnet_jax.training import seeds
from resnet_jax.training.state import TrainState, variable_shapes
from resnet_jax.weights import convert, hub


class Subject(NamedTuple):
    """A network with its variables, and the fields of Config that go with it."""

    title: str
    cfg: Config
    model: nn.Module
    state: TrainState
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...] | None  # None if nothing says them
    seed_index: int | None = None  # among several of a run
    data: dict[str, Any] | None = None  # of its training; None if nothing says it
    is_resized: bool = False  # by the options, so that pixels cannot be compared


def load(
    options: SubjectConfig, *, one: str = "", is_prediction: bool = False
) -> Subject:
    """The subject that the options name.

    Args:
      one: what wants one network, to be told to who names several seeds.
      is_prediction: whether it is for files of images, which need no data set.

    Raises:
      ConfigError: there is no run, or an unknown name.
      DataError: weights or an exported folder cannot be read.
      CheckpointError: the run's checkpoint cannot be.
    """
    options.check()
    source, run_dir = options.weights, Path(str(options.run))
    if source is None and hub.is_exported(run_dir):
        source = str(run_dir)
        fields.refuse(options, OF_RUNS, f"is a run's, and {source} is exported")
    cfg = _config(options)
    factory.create(cfg.model, num_classes=0)  # a misspelt name, before a file is read
    weights = None if source is None else hub.read_weights(source, cfg.model.model)
    class_names: tuple[str, ...] | None = None
    data: dict[str, Any] | None = None
    if options.weights is None and source is not None:
        known = hub.read_info(source)
        class_names = tuple(known["class_names"])
        data = {"test data": known["test_data"]} if "test_data" in known else None
    elif weights is None:
        class_names = read_classes(run_dir)
    elif options.dataset is None and is_prediction and _is_imagenets(weights):
        class_names = hub.imagenet_classes()
        cfg = fields.replace(cfg, dataset="folder", image_size=options.image_size)
    shape = sources.image_shape(cfg.data)
    if class_names is None:
        num_classes = sources.describe(cfg.data).num_classes
    else:
        num_classes = len(class_names)
    model = factory.create(cfg.model, num_classes, in_channels=shape[2])
    template = variable_shapes(model, shape)
    if weights is not None:
        variables = convert.from_torch(weights, template)
        state = TrainState(step=0, opt_state=(), **variables)  # type: ignore[arg-type]
        title = f"{source}: {cfg.model.model} on {cfg.data.dataset}"
        return Subject(
            title,
            cfg,
            model,
            state,
            shape,
            class_names,
            data=data,
            is_resized=options.image_size is not None,
        )
    return _of_run(options, one, cfg, model, template, shape, class_names)


def _of_run(
    options: SubjectConfig,
    one: str,
    cfg: Config,
    model: nn.Module,
    template: Any,
    shape: tuple[int, int, int],
    class_names: tuple[str, ...] | None,
) -> Subject:
    run_dir, num_seeds = Path(str(options.run)), cfg.run.num_seeds
    index = seeds.index_of(options.seed, cfg.seed, num_seeds, options.run or "", one)
    variables, step, data = restore.load_variables(
        run_dir,
        options.checkpoint,
        seeds.shapes(template, num_seeds),
        averaged=cfg.optim.ema_decay > 0,
    )
    title = f"{run_dir}: {cfg.model.model} on {cfg.data.dataset}, step {step}"
    if index is not None:
        variables = seeds.take(variables, index)
        cfg = fields.replace(cfg, seed=cfg.seed + index, num_seeds=1)
        title += f", seed {cfg.seed}"
    state = TrainState(step=step, opt_state=(), **variables)  # type: ignore[arg-type]
    is_resized = options.image_size is not None
    return Subject(
        title, cfg, model, state, shape, class_names, index, data, is_resized
    )


def _is_imagenets(weights: convert.StateDict) -> bool:
    """Whether the last linear layer has ImageNet's 1,000 classes."""
    widths = [len(value) for value in weights.values() if value.ndim == 2]
    return bool(widths) and widths[-1] == 1000


def _config(options: SubjectConfig) -> Config:
    """The run's own configuration, or one that says of weights what is known."""
    if options.weights is not None:
        cfg = Config(
            model=ModelConfig(model=str(options.model), stem=options.stem),
            augment=AugmentConfig(normalize="imagenet"),
        )
    elif hub.is_exported(str(options.run)):
        known = hub.read_info(str(options.run))
        shown = known["preprocessing"]
        size = shown["image_size"]
        cfg = Config(
            model=hub.model_config(known["architecture"]),
            data=DataConfig(
                dataset=known["dataset"],
                image_size=size,
                crop_pct=size / shown["size"],
            ),
            augment=AugmentConfig(normalize=shown["normalize"]),
        )
    else:
        run_dir = Path(str(options.run))
        cfg = fields.replace(read_run(run_dir), stream=False)
        cfg = fields.replace(cfg, data_dir=moved_data_dir(cfg, run_dir))
    given = dict(
        dataset=options.dataset,
        data_dir=options.data_dir,
        normalize=options.normalize,
        image_size=options.image_size,
        eval_batch_size=options.batch_size,
    )
    return fields.replace(cfg, **{k: v for k, v in given.items() if v is not None})


def info(subject: Subject, class_names: Sequence[str]) -> dict[str, Any]:
    """What an exported folder says of the network, but for its scores."""
    cfg, shape = subject.cfg, subject.image_shape
    normalize, side = str(cfg.augment.normalize), shape[0]
    mean, std = parse_normalization(normalize, shape[2])
    # Only images of many sizes are cropped; the others are resized as they are.
    is_folder = cfg.data.dataset == "folder"
    return {
        "architecture": {
            **dataclasses.asdict(cfg.model),
            "num_classes": len(class_names),
            "in_channels": shape[2],
        },
        "dataset": cfg.data.dataset,
        "class_names": list(class_names),
        "preprocessing": {
            "size": round(side / cfg.data.crop_pct) if is_folder else side,
            "image_size": side,
            "interpolation": "bilinear",
            "normalize": normalize,
            "mean": list(mean),
            "std": list(std),
        },
    }


def check_data(subject: Subject, test: Dataset) -> str:
    """What to say of the test images: nothing, if they are those of its training.

    Raises:
      DataError: their classes are not those it was trained on.
    """
    known = subject.class_names
    if known is not None and known != test.class_names:
        raise DataError(
            f"{subject.title}: its classes are not the data's "
            f"({differing(known, test.class_names)}): choose --dataset or --data-dir"
        )
    if subject.data is None or subject.is_resized:
        return ""
    scored = subset(test, subject.cfg.data.max_test_samples)
    unread = str(subject.data["test data"]).startswith(UNREAD)
    now = {"test data": digest(scored, unread=unread)}
    return "other test images than in training" if changed(subject.data, now) else ""
