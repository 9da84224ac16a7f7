"""Models the time of a training step on many devices; nothing is measured.

    python -m benchmarks.scaling
    python -m benchmarks.scaling --model resnet18 --batch-per-device 256 --held
    python -m benchmarks.scaling --flops 150e12 --bandwidth 50e9      # another chip

The model adds up the time for the arithmetic on one device's images, the time for the
all-reduces, and the time to transfer images to the device. The number of bytes in the
all-reduces is exact: it follows from the shapes of the network's variables, and
tests/benchmarks/test_scaling.py finds the same number in the program that XLA compiles.
Everything else depends on the assumptions below.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import tyro

from resnet_jax.commands.command_line import command_line
from resnet_jax.errors import ConfigError


@dataclass(frozen=True)
class Scaling:
    """The network, and assumptions about the machine (GPUs similar to an A100)."""

    model: str = "resnet50"
    """Name of the network; resnet_jax.list_models() lists all names."""
    image_size: int = 224
    """Height and width of the images."""
    num_classes: int = 1000
    """Number of outputs of the network."""
    batch_per_device: int = 128
    """Images per device and step, for any number of devices (weak scaling)."""
    devices: tuple[int, ...] = (1, 8, 16, 32, 64, 128, 256, 512, 1024)
    """Numbers of devices; the table has a row for each."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Dtype of the arithmetic and of the gradients in the all-reduces."""
    sync_bn: bool = True
    """Synchronize BatchNorm as in train.py; with --no-sync-bn, it does not wait for
    other devices."""

    flops: float = 62e12
    """Assumed FLOP/s that a device sustains over a whole training step: a fifth of the
    A100's 312e12 in bfloat16, because such networks often wait for memory."""
    bandwidth: float = 25e9
    """Assumed bytes/s in each direction on the slowest link of the ring of devices: one
    200 Gbit/s network card per device."""
    latency: float = 5e-6
    """Assumed seconds that each doubling of the number of devices adds to a collective
    of any size."""
    host_bandwidth: float = 10e9
    """Assumed transfer rate of decoded images from the host to a device, in bytes/s."""
    held: bool = False
    """Assume that the data are kept on the device, so that steps transfer no images."""

    def __post_init__(self) -> None:
        for name in ("image_size", "num_classes", "batch_per_device", "devices"):
            value = getattr(self, name)
            least = min(value, default=0) if isinstance(value, tuple) else value
            if least < 1:
                raise ConfigError(f"{name} {value} is too small: it must be at least 1")
        for name in ("flops", "bandwidth", "host_bandwidth"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ConfigError(
                    f"{name} {value:g} is not a finite number greater than 0"
                )
        if not 0 <= self.latency < math.inf:
            raise ConfigError(
                f"latency {self.latency:g} is not a finite number of at least 0"
            )


class Reduced(NamedTuple):
    """Bytes that each device contributes to the all-reduces of a training step."""

    gradients: int  # of convolutions and linear layers
    batch_norm: int  # mean and variance; gradients of bias and scale
    metrics: int  # the loss and the number of correct predictions


class Prediction(NamedTuple):
    """Modeled times in seconds; pairs are (without overlap, with maximal overlap)."""

    compute: float
    input: float
    gradients: float  # time to all-reduce the gradients, without overlap
    batch_norm: float
    step: tuple[float, float]
    efficiency: tuple[float, float]  # step time on one device divided by `step`


def reduced(variables: Mapping[str, Any], dtype: str = "float32") -> Reduced:
    """Computes how many bytes are all-reduced across the devices in a training step.

    Every gradient is summed once, in the dtype of the arithmetic. A BatchNorm layer
    with C channels sums four arrays of C float32 values: the mean, the variance, and,
    in the backward pass, the gradients of bias and scale, which are needed to compute
    the gradient of the input. Without sync_bn, the number of bytes is the same, because
    the new running mean and variance are summed instead of the mean and variance of the
    batch. (Without sync_bn, the bias gradients of a block's last BatchNorm and of its
    shortcut's BatchNorm are equal, so XLA sums them only once.) The count is for a step
    without micro-batches.

    Args:
      variables: the variables of the network, with "params" and "batch_stats".
      dtype: the dtype of the arithmetic.
    """
    import jax

    def size(tree: Any) -> int:
        return sum(4 * math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))

    statistics = size(variables.get("batch_stats", {}))
    # BatchNorm's scale and bias are parameters and have as many values as its mean and
    # variance.
    gradients = size(variables["params"]) - statistics
    if dtype == "bfloat16":
        gradients //= 2
    return Reduced(gradients, 2 * statistics, 2 * 4)


def all_reduce_bytes(variables: Mapping[str, Any], dtype: str = "float32") -> int:
    """Returns the total of the byte counts that `reduced` returns."""
    return sum(reduced(variables, dtype))


def num_batch_norms(variables: Mapping[str, Any]) -> int:
    """Returns the number of BatchNorm layers, which is the number of "mean" arrays."""
    import jax

    paths = jax.tree_util.tree_leaves_with_path(variables.get("batch_stats", {}))
    return sum(path[-1].key == "mean" for path, _ in paths)


def collective_seconds(
    num_bytes: float,
    num_devices: int,
    *,
    bandwidth: float,
    latency: float,
    count: int = 1,
) -> float:
    """Returns the seconds that an all-reduce of `num_bytes` in `count` parts takes.

    Each of the n devices sends (n - 1) / n of the bytes twice: once to reduce, and once
    to broadcast. In addition, each part takes `latency` seconds per doubling of n.
    """
    if num_devices == 1:
        return 0.0
    sent = 2 * (num_devices - 1) / num_devices * num_bytes
    return count * latency * math.ceil(math.log2(num_devices)) + sent / bandwidth


def training_flops(num_macs: int) -> int:
    """Returns the FLOPs of a training step for one image.

    A multiply-add counts as two FLOPs, and the backward pass performs two multiply-adds
    for each one in the forward pass.
    """
    return 2 * 3 * num_macs


def predict(
    cfg: Scaling, *, num_macs: int, parts: Reduced, batch_norms: int, num_devices: int
) -> Prediction:
    """Models a step on `num_devices` devices.

    Args:
      num_macs: the number of multiply-adds of the forward pass for one image.
      parts: the bytes that each device contributes to the all-reduces.
      batch_norms: the number of BatchNorm layers. Each layer waits for the sums of the
        mean and variance (one collective in bfloat16, two in float32) and for one
        collective in the backward pass.
    """
    link = {"bandwidth": cfg.bandwidth, "latency": cfg.latency}
    compute = training_flops(num_macs) * cfg.batch_per_device / cfg.flops
    image = 0 if cfg.held else 3 * cfg.image_size**2
    brought = image * cfg.batch_per_device / cfg.host_bandwidth
    late, waited = parts.gradients + parts.metrics, parts.batch_norm
    count = (2 if cfg.dtype == "bfloat16" else 3) * batch_norms
    if not cfg.sync_bn:  # no layer waits for BatchNorm's sums; they join the gradients
        late, waited, count = late + waited, 0, 0
    gradients = collective_seconds(late, num_devices, **link)
    batch_norm = collective_seconds(waited, num_devices, count=count, **link)
    alone = (compute + brought, max(compute, brought))
    # Layers wait for BatchNorm's sums. Gradients can be summed during the backward
    # pass, which is two thirds of the arithmetic, and images can be transferred during
    # the previous step.
    hidden = compute + batch_norm + max(0.0, gradients - compute * 2 / 3)
    step = (alone[0] + gradients + batch_norm, max(hidden, brought))
    efficiency = (alone[0] / step[0], alone[1] / step[1])
    return Prediction(compute, brought, gradients, batch_norm, step, efficiency)


def table(cfg: Scaling) -> str:
    """Returns a Markdown report of the modeled step for each number of devices."""
    from resnet_jax.models.factory import create_model
    from resnet_jax.models.summary import structure
    from resnet_jax.training import variable_shapes

    model = create_model(cfg.model, num_classes=cfg.num_classes)
    image_shape = (cfg.image_size, cfg.image_size, 3)
    num_macs = sum(layer.num_macs for layer in structure(model, image_shape).layers)
    variables = variable_shapes(model, image_shape)
    parts = reduced(variables, cfg.dtype)
    batch_norms = num_batch_norms(variables)
    rows = []
    for n in cfg.devices:
        found = predict(
            cfg,
            num_macs=num_macs,
            parts=parts,
            batch_norms=batch_norms,
            num_devices=n,
        )
        batch = n * cfg.batch_per_device
        sums = f"{1e3 * found.gradients:.1f} + {1e3 * found.batch_norm:.1f}"
        step = " to ".join(f"{1e3 * t:.1f}" for t in reversed(found.step))
        rate = " to ".join(f"{batch / t:,.0f}" for t in found.step)
        efficiency = " to ".join(f"{100 * e:.0f}" for e in found.efficiency)
        rows.append(f"| {n:,} | {batch:,} | {sums} | {step} | {rate} | {efficiency} |")
    alone = 1e3 * found.compute, 1e3 * found.input
    scope = "of the whole batch" if cfg.sync_bn else "of each device's part"
    return "\n".join(
        [
            f"{cfg.model}, {cfg.image_size} pixels, {cfg.batch_per_device} images "
            f"per device, BatchNorm statistics {scope}: modeled, not measured.",
            "",
            f"- arithmetic per device: {num_macs / 1e9:.3f} G multiply-adds x 2 x 3 "
            f"x {cfg.batch_per_device} at {cfg.flops:.3g} FLOP/s: {alone[0]:.1f} ms",
            f"- image transfer per device: {alone[1]:.1f} ms"
            + (" (held)" if cfg.held else f" at {cfg.host_bandwidth:.3g} bytes/s"),
            f"- all-reduced over the devices: {sum(parts):,} bytes (gradients "
            f"{parts.gradients:,}, {batch_norms} BatchNorm layers "
            f"{parts.batch_norm:,}, metrics {parts.metrics}) at {cfg.bandwidth:.3g} "
            f"bytes/s, plus {1e6 * cfg.latency:g} us per collective and doubling of "
            "the number of devices",
            "",
            "| devices | batch | modeled all-reduces, ms: gradients + BatchNorm | "
            "modeled step, ms | modeled images/s | modeled efficiency, % |",
            "|---|---|---|---|---|---|",
            *rows,
        ]
    )


if __name__ == "__main__":
    with command_line("benchmarks.scaling"):
        print(table(tyro.cli(Scaling, description=__doc__)))
