"""Logs the network, data and devices of a run before its first step."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from resnet_jax.config import Config
from resnet_jax.data.loader import Loader
from resnet_jax.devices import processes
from resnet_jax.models import torch_names

log = logging.getLogger(__name__)


def announce(
    cfg: Config,
    mesh: Mesh,
    params: Mapping[str, Any],
    loader: Loader,
    trainable: Callable[[str], bool] | None = None,
) -> None:
    """Logs a few lines that describe the training, but only in the first process.

    Args:
      cfg: the configuration of the run.
      mesh: the devices.
      params: the parameters of the network, or of the networks for all seeds.
      loader: the image loader.
      trainable: a predicate on PyTorch parameter names, or None if all parameters are
        trained.
    """
    if processes.is_first():
        for line in describe(cfg, mesh, params, loader, trainable):
            log.info("%s", line)


def describe(
    cfg: Config,
    mesh: Mesh,
    params: Mapping[str, Any],
    loader: Loader,
    trainable: Callable[[str], bool] | None = None,
) -> list[str]:
    """Returns the lines that `announce` logs."""
    splits, seeds = loader.splits, cfg.run.num_seeds
    network = f"network:  {cfg.model.model}, {_parameters(params, seeds, trainable)}"
    if cfg.transfer.pretrained is not None:
        network += f", from {cfg.transfer.pretrained}"
    if seeds > 1:
        network += (
            f"; {seeds} such networks, with seeds {cfg.seed} to {cfg.seed + seeds - 1}"
        )
    counts = [f"{len(splits.train):,} training"]
    if len(splits.validation):
        counts.append(f"{len(splits.validation):,} validation")
    shape = "x".join(map(str, splits.train.images.shape[1:]))
    source = cfg.data.dataset
    if source == "folder":
        source += f" {cfg.data.data_dir}"
    images = (
        f"images:   {source}, {', '.join(counts)} and {len(splits.test):,} test "
        f"images of size {shape}, in {len(splits.train.class_names)} classes"
    )
    steps = (
        f"steps:    {loader.total_steps:,} in total, {cfg.data.batch_size} images "
        f"per step, {loader.steps_per_epoch:,} steps per epoch"
    )
    devices = f"devices:  {_devices(mesh)}, {cfg.model.dtype}"
    return [network, images, steps, devices, f"output:   {cfg.run.workdir}"]


def _parameters(
    params: Mapping[str, Any], seeds: int, trainable: Callable[[str], bool] | None
) -> str:
    names, leaves = torch_names.list_names(params), jax.tree.leaves(params)
    sizes = {name: leaf.size // seeds for name, leaf in zip(names, leaves, strict=True)}
    total = sum(sizes.values())
    if trainable is None:
        return f"{total:,} parameters"
    trained = sum(size for name, size in sizes.items() if trainable(name))
    return f"{total:,} parameters, {trained:,} of them trainable"


def _devices(mesh: Mesh) -> str:
    devices = list(mesh.devices.flat)
    kind = devices[0].device_kind
    where = f"{len(devices)} x {devices[0].platform}"
    if kind.lower() != devices[0].platform:
        where += f" ({kind})"
    num = len({device.process_index for device in devices})
    return where if num == 1 else f"{where} in {num} processes"
