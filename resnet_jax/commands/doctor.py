"""Check this machine: versions, devices, data, weights and arithmetic.

    resnet-jax doctor

Some JAX releases computed wrong results for some programs on some machines (jax#39103).
This command therefore compiles and runs a convolution, a BatchNorm training step and a
reduction over 32,769 rows, and compares the results with NumPy's. It exits with code 1
if a result is wrong.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from resnet_jax.errors import ConfigError

ROWS = 32_769
_TOLERANCE = 1e-4  # relative to the largest value; float32 rounding gives about 1e-6


@dataclass(frozen=True)
class DoctorConfig:
    """What to check."""

    platform: str | None = None
    """Platform to check: cpu, cuda, tpu or another that JAX supports. By default, JAX
    chooses."""


def main(options: DoctorConfig) -> None:
    """Prints the results of all checks; exits with 1 if an arithmetic check fails."""
    import jax

    from resnet_jax.data import tfds
    from resnet_jax.devices import make_mesh, platform
    from resnet_jax.weights import export, hub
    from resnet_jax.weights.published import SHIPPED

    platform.prepare(options.platform, None)
    for name, version in export.versions().items():
        print(f"{name:24}{version or 'not installed'}")
    kept: Any = jax.config
    devices = list(make_mesh(platform=options.platform).devices.flat)
    for device in devices:
        print(f"{'device':24}{device.platform} {device.id}: {device.device_kind}")
    if devices[0].platform == "cpu" and not kept.jax_platforms:  # JAX chose it
        print(f"{'accelerator':24}{platform.missing_accelerator()}")
    cached = kept.jax_compilation_cache_dir or "not cached"
    print(f"{'compiled programs':24}{cached}")
    try:
        home = tfds.default_data_dir()
    except ConfigError as error:
        print(f"{'data':24}{error}")
    else:
        for name in ("cifar10", "cifar100", "fashion_mnist"):
            print(f"{'data: ' + name:24}{tfds.find(name, home) or f'not in {home}'}")
    print(f"{'weights':24}in this package: {', '.join(SHIPPED)}")
    for folder in hub.weights_folders():
        found = ", ".join(sorted(path.name for path in folder.glob("resnet*.pth")))
        print(f"{'weights':24}{folder}: {found or 'none'}")
    wrong = 0
    for name, check in CHECKS.items():
        # By default, JAX rounds the inputs of matrix products to fewer bits on GPUs and
        # TPUs.
        with jax.default_matmul_precision("highest"):
            difference = check()
        is_right = difference < _TOLERANCE  # a NaN counts as wrong
        wrong += not is_right
        verdict = "right" if is_right else "WRONG"
        print(f"{'check: ' + name:24}{verdict}, differs by {difference:.1e}")
    if wrong:
        raise SystemExit(1)


def differs(found: Any, expected: np.ndarray) -> float:
    """Returns the maximum absolute error divided by the largest expected magnitude."""
    gap = np.abs(np.asarray(found, np.float64) - expected).max()
    return float(gap / np.abs(expected).max())


def check_convolution() -> float:
    """Checks a 3x3, stride-1 convolution against a NumPy sum over its nine taps."""
    import jax

    from resnet_jax.layers import convolve

    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 16, 16, 32)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, 32, 32)).astype(np.float32)
    found = jax.jit(lambda x, k: convolve(x, k, stride=1, padding=1))(x, kernel)
    padded = np.pad(x.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    expected = sum(
        padded[:, i : i + 16, j : j + 16] @ kernel[i, j].astype(np.float64)
        for i in range(3)
        for j in range(3)
    )
    return differs(found, np.asarray(expected))


def check_batch_norm() -> float:
    """Checks BatchNorm's training output and running statistics against NumPy."""
    import jax

    from resnet_jax.layers import BatchNorm

    x = np.random.default_rng(0).normal(3.0, 2.0, (16, 8, 8, 32)).astype(np.float32)
    layer = BatchNorm()
    variables = layer.init(jax.random.key(0), x, train=True)

    @jax.jit
    def step(variables: Any, x: Any) -> Any:
        return layer.apply(variables, x, train=True, mutable=["batch_stats"])

    y, moved = step(variables, x)
    flat = x.reshape(-1, 32).astype(np.float64)
    mean, var = flat.mean(0), flat.var(0)
    expected = ((flat - mean) / np.sqrt(var + 1e-5)).reshape(x.shape)
    unbiased = var * len(flat) / (len(flat) - 1)
    stats = moved["batch_stats"]
    return max(
        differs(y, expected),
        differs(stats["mean"], 0.1 * mean),
        differs(stats["var"], 0.9 + 0.1 * unbiased),
    )


def check_reduction() -> float:
    """Checks means and variances over 32,769 rows against NumPy.

    In jax#39103, these means and variances were off by 1 %.
    """
    import jax
    import jax.numpy as jnp

    x = np.random.default_rng(0).random((ROWS, 8)).astype(np.float32)
    mean, var = jax.jit(lambda x: (jnp.mean(x, 0), jnp.var(x, 0)))(x)
    wide = x.astype(np.float64)
    return max(differs(mean, wide.mean(0)), differs(var, wide.var(0)))


CHECKS: dict[str, Callable[[], float]] = {
    "convolution": check_convolution,
    "batch norm": check_batch_norm,
    "reduction": check_reduction,
}
