"""Times a grouped convolution's kernel gradient in our version and in XLA's.

python -m benchmarks.grouped
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import tyro


@dataclass(frozen=True)
class Grouped:
    """A 3x3 stride-1 convolution on inputs [batch_size, side, side, channels]."""

    batch_size: int = 8
    """Images in the batch."""
    side: int = 56
    """Height and width of the feature maps."""
    channels: int = 128
    """Number of channels, both of the input and of the output."""
    groups: int = 32
    """Number of channel groups; ResNeXt-50 32x4d has 32."""
    rounds: int = 3
    """Number of measurements per version; the versions take turns."""


def main(cfg: Grouped) -> None:
    """Prints each version's time in seconds and their ratio, as medians with ranges."""
    import jax
    import numpy as np

    from resnet_jax.layers import grouped

    rng = np.random.default_rng(0)
    shape = (cfg.batch_size, cfg.side, cfg.side, cfg.channels)
    x, dy = (jax.device_put(rng.normal(size=shape).astype("f4")) for _ in range(2))
    kernel = rng.normal(size=(3, 3, cfg.channels // cfg.groups, cfg.channels))
    kernel = jax.device_put(kernel.astype("f4"))

    def gradient(convolve: Callable[..., jax.Array]) -> Callable[[], Any]:
        def pull(kernel: jax.Array, x: jax.Array, dy: jax.Array) -> Any:
            return jax.vjp(lambda kernel: convolve(x, kernel), kernel)[1](dy)

        compiled = jax.jit(pull).lower(kernel, x, dy).compile()
        return lambda: jax.block_until_ready(compiled(kernel, x, dy))

    contestants = {
        "ours": gradient(partial(grouped.convolve, 1, 1, cfg.groups)),
        "XLA's": gradient(partial(grouped.by_xla, 1, 1, groups=cfg.groups)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(cfg.rounds):
        for name, run in contestants.items():
            begun = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - begun)
    pairs = zip(seconds["XLA's"], seconds["ours"], strict=True)
    ratios = [theirs / ours for theirs, ours in pairs]
    for name, values in {**seconds, "ratio": ratios}.items():
        low, high = min(values), max(values)
        print(f"{name}: {statistics.median(values):.3g} ({low:.3g} to {high:.3g})")


if __name__ == "__main__":
    main(tyro.cli(Grouped, description=__doc__))
