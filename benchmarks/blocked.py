"""Times few-channel CPU convolutions with neighboring pixels merged into channels.

    python -m benchmarks.blocked

Arrays of shape [N, H, W, C] and [N, H, W / P, P * C] have the same memory layout, so a
whole stage of a network could use the second shape without a copy. A kernel of shape
[3, 3, C, C] then becomes a banded kernel of shape [3, 3, P * C, P * C], which is mostly
zeros. The matrix products are wider, but they require more multiply-adds.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from resnet_jax.layers.grouped import by_xla


@dataclass(frozen=True)
class Blocked:
    """The stage to time: `depth` convolutions, each followed by ReLU."""

    batch_size: int = 128
    """Images in the batch."""
    side: int = 32
    """Height and width of the feature maps."""
    channels: int = 16
    """Number of channels of the feature maps."""
    depth: int = 6
    """Number of consecutive convolutions."""
    pixels: tuple[int, ...] = (1, 2, 4)
    """Numbers of neighboring pixels to merge within a row; 1 keeps the usual shape."""
    rounds: int = 5
    """Number of measurements per shape; the shapes take turns."""


def banded(kernel: np.ndarray, pixels: int) -> np.ndarray:
    """Converts a [3, 3, C, F] kernel to [3, 3, P * C, P * F], for P merged pixels."""
    _, _, channels, features = kernel.shape
    whole = np.zeros((3, 3, pixels, channels, pixels, features), kernel.dtype)
    for output in range(pixels):
        for tap in range(3):
            block, place = divmod(output + tap - 1, pixels)
            whole[:, block + 1, place, :, output] = kernel[:, tap]
    return whole.reshape(3, 3, pixels * channels, pixels * features)


def stage(x: jax.Array, kernels: list[jax.Array]) -> jax.Array:
    for kernel in kernels:
        x = jax.nn.relu(by_xla(1, 1, x, kernel, groups=1))
    return x


def main(cfg: Blocked) -> None:
    """Prints each shape's time in ms, and the ratio to the first shape's time."""
    rng = np.random.default_rng(0)
    shape = (cfg.batch_size, cfg.side, cfg.side, cfg.channels)
    x = rng.normal(size=shape).astype("f4")
    scale = (2 / (9 * cfg.channels)) ** 0.5
    kernels = rng.normal(size=(cfg.depth, 3, 3, cfg.channels, cfg.channels)) * scale
    runs: dict[int, Callable[[], jax.Array]] = {}
    outputs = {}
    for pixels in cfg.pixels:
        wide = jnp.asarray(x.reshape(*shape[:2], -1, pixels * cfg.channels))
        own = [jnp.asarray(banded(kernel.astype("f4"), pixels)) for kernel in kernels]
        compiled = jax.jit(stage).lower(wide, own).compile()
        runs[pixels] = lambda run=compiled, x=wide, own=own: jax.block_until_ready(
            run(x, own)
        )
        outputs[pixels] = np.asarray(runs[pixels]()).reshape(shape)
    seconds: dict[int, list[float]] = {pixels: [] for pixels in runs}
    for _ in range(cfg.rounds):
        for pixels, run in runs.items():
            begun = time.perf_counter()
            run()
            seconds[pixels].append(time.perf_counter() - begun)
    first = cfg.pixels[0]
    print("| merged pixels | ms | ratio | largest difference |\n|---|---|---|---|")
    for pixels, values in seconds.items():
        pairs = zip(values, seconds[first], strict=True)
        ratio = statistics.median(mine / usual for mine, usual in pairs)
        off = np.abs(outputs[pixels] - outputs[first]).max()
        print(
            f"| {pixels} | {1e3 * statistics.median(values):.1f} | {ratio:.2f} | "
            f"{off / np.abs(outputs[first]).max():.1e} |"
        )


if __name__ == "__main__":
    main(tyro.cli(Blocked, description=__doc__))
