"""Exports a network as a StableHLO program, which needs only JAX to run."""

from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export
from jax import lax

from resnet_jax.layers import keep
from resnet_jax.weights import export
from resnet_jax.weights.program import (
    Network,
    check_agrees,
    make_logits,
    pixels_to_input,
)

FILE = "model.stablehlo"
PLATFORMS = ("cpu", "cuda", "tpu")


def write(directory: Path, network: Network, info: dict[str, Any]) -> None:
    """Writes model.stablehlo, config.json and a model card into `directory`.

    The program takes normalized float32 images [batch, H, W, C] with any batch size and
    returns float32 logits [batch, num_classes]. It contains the weights. When it is
    called, it is compiled for a CPU, an NVIDIA GPU or a TPU.

    Args:
      directory: see export.write.
      network: the network, and images to check the program with.
      info: see export.write.

    Raises:
      ConfigError: if the folder cannot be written to.
      DataError: if the program's logits differ too much from the network's. In this
        case, nothing is written.
    """
    program = convert(network)
    differs = check(program, network)
    info = {
        **info,
        "stablehlo": {
            "file": FILE,
            "platforms": list(PLATFORMS),
            "input": {"shape": ["batch", *network.images.shape[1:]]},
            "output": {"shape": ["batch", len(info["class_names"])]},
            "dtype": "float32",
            "difference": differs,
        },
    }
    export.write_folder(
        directory,
        FILE,
        lambda path: path.write_bytes(program),
        info,
        variables=network.variables,
        usage=_usage(info),
        tag="stablehlo",
    )


def convert(network: Network) -> bytearray:
    """Converts a network to a program serialized by jax.export."""
    (batch,) = jax_export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *network.images.shape[1:]), jnp.float32)

    def logits(images: jax.Array) -> jax.Array:
        # The barrier makes XLA treat the weights like arguments. Otherwise, XLA would
        # spend seconds folding large constants and would round results differently.
        variables = lax.optimization_barrier(network.variables)
        return make_logits(network.model, variables)(images)

    exported = jax_export.export(jax.jit(logits), platforms=PLATFORMS)
    return exported(images).serialize()


def check(program: bytearray, network: Network) -> float:
    """Returns how much the program's logits differ from the network's own.

    Raises:
      DataError: if the difference is larger than a different order of summation can
        explain.
    """
    apply = jax.jit(partial(network.model.apply, train=False))
    expected = np.asarray(apply(network.variables, network.images))
    call: Any = jax_export.deserialize(program).call
    is_exact = network.model.dtype == jnp.float32 and keep.platform() == "cpu"
    return check_agrees(
        lambda images: np.asarray(call(images)),
        network.images,
        expected,
        tolerance=1e-4 if is_exact else 0.05,
        what=f"{FILE} was not written: its logits",
        hint=f"install a version of jax other than {jax.__version__}",
    )


def _usage(info: dict[str, Any]) -> str:
    known = info["stablehlo"]
    shape = ", ".join(map(str, known["input"]["shape"]))
    return f"""`{FILE}` is a StableHLO program that contains its weights, serialized \
by `jax.export` for {", ".join(PLATFORMS[:-1])} and {PLATFORMS[-1]}. To run it, you \
need only JAX {jax.__version__} or a version that was released up to six months later. \
The program takes normalized float32 images [{shape}] in batches of any size and \
returns float32 logits [batch, {len(info["class_names"])}].

```python
from jax import export

with open("{FILE}", "rb") as file:
    network = export.deserialize(bytearray(file.read()))
# pixels: uint8 [{shape}]
{pixels_to_input(info["preprocessing"])}
logits = network.call(x)
```
"""
