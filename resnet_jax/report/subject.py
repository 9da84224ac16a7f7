"""What evaluate.py scores: a run, an exported folder, or bare weights."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn

from resnet_jax import data, models, training
from resnet_jax.commands.options import EvaluateConfig
from resnet_jax.config import Config
from resnet_jax.data.augment import parse_normalization
from resnet_jax.errors import ConfigError, DataError
from resnet_jax.run import restore as checkpoint
from resnet_jax.run.directory import read_classes, read_run
from resnet_jax.training import seeds
from resnet_jax.weights import convert, hub


class Subject(NamedTuple):
    """A network with its variables, and the fields of Config that go with it."""

    title: str
    cfg: Config
    model: nn.Module
    state: training.TrainState
    class_names: tuple[str, ...] | None  # None where nothing says them
    index: int | None = None  # of the one seed, among several of a run


def load(options: EvaluateConfig) -> Subject:
    """The subject that the command line names.

    Raises:
      ConfigError: there is no run, or an unknown name.
      DataError: weights or an exported folder cannot be read.
      CheckpointError: the run's checkpoint cannot be.
    """
    source, run_dir = options.weights, Path(str(options.run))
    if source is None and hub.is_exported(run_dir):
        source = str(run_dir)
    cfg = _config(options)
    make_model = partial(models.create_model, cfg.model, **cfg.architecture)
    make_model(num_classes=0)  # a misspelt name is said before a file is read
    weights = None if source is None else hub.read_weights(source, cfg.model)
    if options.weights is None and source is not None:
        class_names = tuple(hub.read_info(source)["class_names"])
    elif source is None:
        class_names = read_classes(run_dir)
    elif options.dataset is None and options.images and _is_imagenets(weights):
        class_names = hub.imagenet_classes()
        cfg = replace(cfg, dataset="folder", image_size=options.image_size)
    else:
        class_names = None
    if class_names is None:
        num_classes = data.describe(cfg.dataset, cfg.data_dir).num_classes
    else:
        num_classes = len(class_names)
    model = make_model(num_classes=num_classes)
    template = training.variable_shapes(
        model, data.image_shape(cfg.dataset, cfg.image_size)
    )
    index = _index_of_seed(cfg, options)
    index = None if cfg.num_seeds == 1 else index
    if weights is None:
        variables, step = checkpoint.load_variables(
            *(run_dir, options.checkpoint, seeds.shapes(template, cfg.num_seeds)),
            averaged=cfg.ema_decay > 0,
        )
        title = f"{run_dir}: {cfg.model} on {cfg.dataset}, step {step}"
        if index is not None:
            variables = seeds.take(variables, index)
            cfg = replace(cfg, seed=cfg.seed + index, num_seeds=1)
            title += f", seed {cfg.seed}"
    else:
        variables, step = convert.from_torch(weights, template), 0
        title = f"{source}: {cfg.model} on {cfg.dataset}"
    state = training.TrainState(step=step, opt_state=(), **variables)
    return Subject(title, cfg, model, state, class_names, index)


def _index_of_seed(cfg: Config, options: EvaluateConfig) -> int | None:
    """The place of the one seed that is asked for; None where all of a run are.

    Raises:
      ConfigError: it is not the run's, or none is chosen for what is of one network.
    """
    known = f"of seed {cfg.seed}"
    if cfg.num_seeds > 1:
        known = f"of seeds {cfg.seed} to {cfg.seed + cfg.num_seeds - 1}"
    if cfg.num_seeds > 1 and options.seed is None:
        for name in ("report", "images", "export"):
            if getattr(options, name):
                raise ConfigError(f"--{name} is {known}, each a network: --seed too")
    if options.seed is None:
        return None
    index = options.seed - cfg.seed
    if not 0 <= index < cfg.num_seeds:
        raise ConfigError(f"seed {options.seed}: {options.run} is {known}")
    return index


def _is_imagenets(weights: convert.StateDict) -> bool:
    """Whether the last linear layer has ImageNet's 1,000 classes."""
    widths = [len(value) for value in weights.values() if value.ndim == 2]
    return bool(widths) and widths[-1] == 1000


def _config(options: EvaluateConfig) -> Config:
    """The run's own configuration, or one that says of weights what is known."""
    if options.weights is not None:
        cfg = Config(model=str(options.model), stem=options.stem, normalize="imagenet")
    elif hub.is_exported(str(options.run)):
        known = hub.read_info(str(options.run))
        architecture, preprocessing = known["architecture"], known["preprocessing"]
        cfg = Config(
            model=architecture["model"],
            **hub.options_of(architecture),
            dataset=known["dataset"],
            normalize=preprocessing["normalize"],
            image_size=preprocessing["image_size"],
            crop_pct=preprocessing["image_size"] / preprocessing["size"],
        )
    else:
        cfg = replace(read_run(Path(str(options.run))), stream=False)
    given = {
        "dataset": options.dataset,
        "data_dir": options.data_dir,
        "normalize": options.normalize,
        "image_size": options.image_size,
        "eval_batch_size": options.batch_size,
    }
    return replace(cfg, **{k: v for k, v in given.items() if v is not None})


def info(subject: Subject, class_names: Sequence[str]) -> dict[str, Any]:
    """What an exported folder says of the network, but for its scores."""
    cfg = subject.cfg
    normalize = str(cfg.normalize)
    mean, std = parse_normalization(normalize)
    side = data.image_shape(cfg.dataset, cfg.image_size)[0]
    # Only pictures of many sizes are cropped; the others are resized as they are.
    size = round(side / cfg.crop_pct) if cfg.dataset == "folder" else side
    return {
        "architecture": {
            "model": cfg.model,
            "num_classes": len(class_names),
            "stem": cfg.stem,
            "skip": cfg.skip,
            "norm": cfg.norm,
            "width": cfg.width,
            "whiten": cfg.whiten,
            "dtype": cfg.dtype,
        },
        "dataset": cfg.dataset,
        "class_names": list(class_names),
        "preprocessing": {
            "size": size,
            "image_size": side,
            "interpolation": "bilinear",
            "normalize": normalize,
            "mean": list(mean),
            "std": list(std),
        },
    }


def check_classes(subject: Subject, dataset: data.Dataset) -> None:
    """Raises DataError where the data's classes are not those it was trained on."""
    known = subject.class_names
    if known is not None and known != dataset.class_names:
        raise DataError(
            f"{subject.title}: its classes ({', '.join(known[:3])}, ...) are not the "
            f"data's ({', '.join(dataset.class_names[:3])}, ...): choose --dataset"
        )
