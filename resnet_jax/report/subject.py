"""The subject of an evaluation: a run, an exported folder, or bare weights."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np

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
from resnet_jax.run.directory import moved, read_classes, read_run
from resnet_jax.training import seeds
from resnet_jax.training.state import TrainState, variable_shapes
from resnet_jax.weights import exported, hub
from resnet_jax.weights.adopt import adopt
from resnet_jax.weights.match import Match, dictionaries
from resnet_jax.weights.names import OF_CIFAR
from resnet_jax.weights.published import is_shipped
from resnet_jax.weights.read import Content

log = logging.getLogger(__name__)


class Subject(NamedTuple):
    """A network with its variables and configuration."""

    title: str
    cfg: Config
    model: nn.Module
    state: TrainState
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...] | None  # None if unknown
    seed_index: int | None = None  # index of the selected seed in the run
    data: dict[str, Any] | None = None  # identifies the training data; None if unknown
    is_resized: bool = False  # whether an option resizes the images


def load(
    options: SubjectConfig, *, one: str = "", is_prediction: bool = False
) -> Subject:
    """Loads the subject that the options specify.

    Args:
      one: the option that requires a single network, or "". Error messages mention this
        option.
      is_prediction: whether image files are classified, which requires no data set.

    Raises:
      ConfigError: if the run does not exist, or if a name is unknown.
      DataError: if weights or an exported folder cannot be read.
      CheckpointError: if the checkpoint of the run cannot be read.
    """
    options.check()
    source, run_dir = options.weights, Path(str(options.run))
    is_exported = hub.is_network(run_dir) or is_shipped(str(options.run))
    if source is None and is_exported:
        source = str(run_dir)
        fields.refuse(
            options,
            OF_RUNS,
            f"applies only to a run, but {source} is an exported network",
        )
    if source is not None:
        return _of_weights(options, source, is_prediction)
    for name in ("model.onnx", "model.stablehlo"):
        if (run_dir / name).is_file():
            raise DataError(
                f"{run_dir} contains an exported program, {name}; the model card "
                "explains how to run it. To evaluate the network, specify the run "
                "from which it was exported"
            )
    cfg = _config_of_run(options)
    class_names = read_classes(run_dir)
    shape = sources.image_shape(cfg.data)
    num_classes = _count_classes(cfg, class_names)
    model = factory.create(cfg.model, num_classes, in_channels=shape[2])
    template = variable_shapes(model, shape)
    return _of_run(options, one, cfg, model, template, shape, class_names)


def _of_weights(options: SubjectConfig, source: str, is_prediction: bool) -> Subject:
    name = options.model
    if name is not None:  # report a misspelled model name before reading any file
        factory.create(ModelConfig(model=name), num_classes=0)
    path = hub.locate(source, name)
    known = hub.describe(source, path, name)
    if known is None and name is None:
        hub.refuse_unknown(source, path)
    cfg = _config_of_weights(options, known)
    content = hub.read_weights(path)
    class_names: tuple[str, ...] | None = None
    if known is not None and (exported.is_exported(path) or is_prediction):
        class_names = known.class_names
        if class_names is None and known.num_classes:
            class_names = tuple(map(str, range(known.num_classes)))
    elif options.dataset is None and is_prediction and _is_imagenets(content):
        class_names = hub.imagenet_classes()
        cfg = fields.replace(cfg, dataset="folder", image_size=options.image_size)
    shape = sources.image_shape(cfg.data)
    num_classes = _count_classes(cfg, class_names)
    model = factory.create(cfg.model, num_classes, in_channels=shape[2])
    template = variable_shapes(model, shape)
    variables, found = adopt(
        content, template, model, name=cfg.model.model, key=options.weights_key
    )
    if known is None and not is_prediction:
        log.info("weights: %s", _describe_normalization(cfg, model, found))
    data = None
    if known is not None and known.test_data is not None:
        data = {"test data": known.test_data}
    state = TrainState(step=0, opt_state=(), **variables)  # type: ignore[arg-type]
    title = f"{source}: {cfg.model.model} on {cfg.data.dataset}"
    is_resized = options.image_size is not None
    return Subject(title, cfg, model, state, shape, class_names, None, data, is_resized)


def _count_classes(cfg: Config, class_names: tuple[str, ...] | None) -> int:
    if class_names is None:
        return sources.describe(cfg.data).num_classes
    return len(class_names)


def _describe_normalization(cfg: Config, model: nn.Module, found: Match) -> str:
    """Describes the normalization used for bare weights, and the usual choice."""
    chosen = cfg.augment.normalize
    is_small = found.table in OF_CIFAR or getattr(model, "stem", "cifar") == "cifar"
    usual = "cifar10" if is_small else "imagenet"
    said = f"images normalized as {chosen}"
    if chosen == usual:
        return (
            f"{said}, which is usual for this type of file; the file does not "
            "specify the normalization"
        )
    return (
        f"{said}; the file does not specify the normalization, and --normalize "
        f"{usual} is usual for this type of file"
    )


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


def _is_imagenets(content: Content) -> bool:
    """Returns whether the last linear layer has 1,000 outputs, as ImageNet requires."""
    widths = [
        len(value)
        for dictionary in dictionaries(content.value).values()
        for value in dictionary.values()
        if isinstance(value, np.ndarray) and value.ndim == 2
    ]
    return bool(widths) and widths[-1] == 1000


def _config_of_weights(options: SubjectConfig, known: hub.Network | None) -> Config:
    """Returns a configuration with the settings that are known for the weights."""
    cfg = Config(augment=AugmentConfig(normalize="imagenet"))
    if known is not None:
        data = DataConfig(
            dataset=known.dataset,
            image_size=known.crop,
            in_channels=known.in_channels,  # type: ignore[arg-type]
        )
        data = dataclasses.replace(data, interpolation=known.interpolation)  # type: ignore[arg-type]
        if known.crop is not None and known.resize is not None:
            data = dataclasses.replace(data, crop_pct=known.crop / known.resize)
        augment = AugmentConfig(normalize=known.normalize)
        is_named = options.model in (None, known.model.model)
        model = known.model if is_named else ModelConfig()
        cfg = Config(model=model, data=data, augment=augment)
    names = ("model", "stem", "shortcut", "in_channels", "stride_in_1x1", "bn_eps")
    chosen = {name: getattr(options, name) for name in names}
    return _with_options(fields.replace(cfg, **_given(chosen)), options)


def _config_of_run(options: SubjectConfig) -> Config:
    run_dir = Path(str(options.run))
    cfg = fields.replace(read_run(run_dir), stream=False)
    data_dir, names = (
        moved(p, cfg, run_dir) for p in (cfg.data.data_dir, cfg.data.class_names)
    )
    cfg = fields.replace(cfg, data_dir=data_dir, class_names=names)
    return _with_options(cfg, options)


def _with_options(cfg: Config, options: SubjectConfig) -> Config:
    chosen = dict(
        dataset=options.dataset,
        data_dir=options.data_dir,
        normalize=options.normalize,
        image_size=options.image_size,
        eval_batch_size=options.batch_size,
    )
    return fields.replace(cfg, **_given(chosen))


def _given(chosen: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in chosen.items() if value}


def info(subject: Subject, class_names: Sequence[str]) -> dict[str, Any]:
    """Returns the network description for an exported folder, without metrics."""
    cfg, shape = subject.cfg, subject.image_shape
    normalize, side = str(cfg.augment.normalize), shape[0]
    mean, std = parse_normalization(normalize, shape[2])
    # Images are resized and cropped if their sizes vary; otherwise, they are only
    # resized.
    is_cropped = sources.is_cropped(cfg.data)
    return {
        "model": {
            **dataclasses.asdict(cfg.model),
            "num_classes": len(class_names),
            "in_channels": shape[2],
        },
        "dataset": cfg.data.dataset,
        "class_names": list(class_names),
        "preprocessing": {
            "size": round(side / cfg.data.kept) if is_cropped else side,
            "image_size": side,
            "interpolation": cfg.data.interpolation if is_cropped else "bilinear",
            "normalize": normalize,
            "mean": list(mean),
            "std": list(std),
        },
    }


def check_data(subject: Subject, test: Dataset) -> str:
    """Returns a note if the training run used different test images; otherwise, "".

    Raises:
      DataError: if the training run used different classes.
    """
    known = subject.class_names
    if known is not None and known != test.class_names:
        raise DataError(
            f"{subject.title}: the network's classes differ from those of the data "
            f"({differing(known, test.class_names)}): choose another --dataset or "
            "--data-dir"
        )
    if subject.data is None or subject.is_resized:
        return ""
    scored = subset(test, subject.cfg.data.max_test_samples)
    unread = str(subject.data["test data"]).startswith(UNREAD)
    now = {"test data": digest(scored, unread=unread)}
    return (
        "test images differ from those of the training run"
        if changed(subject.data, now)
        else ""
    )
