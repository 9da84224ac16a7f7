"""Exports a network as an ONNX graph and compares onnxruntime's logits with JAX's."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.errors import ConfigError, DataError, first_line
from resnet_jax.models import folding
from resnet_jax.weights import export
from resnet_jax.weights.program import (
    Network,
    check_agrees,
    make_logits,
    pixels_to_input,
)

FILE = "model.onnx"
INPUT, OUTPUT = "images", "logits"
OPSET = 18  # supported by onnxruntime since 1.14, and by most other runtimes
TOLERANCE = 1e-4  # relative to the largest logit; 100 times the rounding error
_LIBRARIES = ("jax2onnx", "onnxruntime")


def check_installed() -> None:
    """Raises ConfigError unless the libraries in the "onnx" extra are installed."""
    try:
        import jax2onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"--format onnx needs {error.name}: pip install -e '.[onnx]'"
        ) from None


def write(directory: Path, network: Network, info: dict[str, Any]) -> None:
    """Writes model.onnx, config.json and a model card into `directory`.

    The graph takes normalized float32 `images` [batch, C, H, W] with any batch size and
    returns `logits` [batch, num_classes]. It computes in float32, with BatchNorm folded
    into the preceding convolutions.

    Args:
      directory: see export.write.
      network: the network, and images to check the graph with.
      info: see export.write.

    Raises:
      ConfigError: if a library is missing, or the folder cannot be written to.
      DataError: if the network cannot be converted, or if onnxruntime's logits differ
        too much from JAX's. In either case, nothing is written.
    """
    check_installed()
    model = network.model.clone(dtype=jnp.dtype(jnp.float32))
    network = network._replace(model=model)
    graph = convert(network)
    info = {
        **info,
        "onnx": {
            "file": FILE,
            "opset": OPSET,
            "input": {"name": INPUT, "shape": ["batch", *_moved(network.images.shape)]},
            "output": {"name": OUTPUT, "shape": ["batch", len(info["class_names"])]},
            "dtype": "float32",
            "difference": check(graph, network),
            "versions": {name: export.version(name) for name in _LIBRARIES},
        },
    }
    export.write_folder(
        directory,
        FILE,
        lambda path: path.write_bytes(graph),
        info,
        variables=network.variables,
        usage=_usage(info),
        tag="onnx",
    )


def convert(network: Network) -> bytes:
    """Converts a network to a serialized ONNX graph.

    Raises:
      DataError: if jax2onnx cannot convert the network.
    """
    import jax2onnx

    logits = make_logits(*folding.fold(network.model, network.variables))
    narrator = logging.getLogger("onnx_ir.serde")  # warns about missing annotations
    level = narrator.level
    narrator.setLevel(logging.ERROR)
    try:
        graph = jax2onnx.to_onnx(
            lambda images: logits(images.transpose(0, 2, 3, 1)),
            [("batch", *_moved(network.images.shape))],
            model_name="resnet_jax",
            opset=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
        )
    except Exception as error:  # tracing can raise any type of exception
        raise DataError(
            f"jax2onnx {export.version('jax2onnx')} cannot convert the network "
            f"({first_line(error)}): install another version"
        ) from error
    finally:
        narrator.setLevel(level)
    found: bytes = graph.SerializeToString()
    return found


def check(graph: bytes, network: Network) -> float:
    """Returns how much onnxruntime's logits differ from JAX's (see check_agrees).

    Raises:
      DataError: if the difference exceeds TOLERANCE, or onnxruntime cannot run the
        graph.
    """
    images = network.images
    apply = jax.jit(partial(network.model.apply, train=False))
    with jax.default_matmul_precision("highest"):  # no TF32 on GPUs
        expected = np.asarray(apply(network.variables, images))
    hint = f"install a version of jax2onnx other than {export.version('jax2onnx')}"
    try:
        return check_agrees(
            _session(graph),
            images.transpose(0, 3, 1, 2),
            expected,
            tolerance=TOLERANCE,
            what=f"{FILE} was not written: onnxruntime's logits",
            hint=hint,
        )
    except DataError:
        raise
    except Exception as error:  # onnxruntime has one exception class per status code
        raise DataError(
            f"{FILE} was not written: onnxruntime cannot run it ({first_line(error)}): "
            f"{hint}"
        ) from error


def _session(graph: bytes) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a function that runs `graph` on images [batch, C, H, W]."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised, so they need not be logged
    session = onnxruntime.InferenceSession(
        graph, options, providers=["CPUExecutionProvider"]
    )

    def run(images: np.ndarray) -> np.ndarray:
        (logits,) = session.run([OUTPUT], {INPUT: np.ascontiguousarray(images)})
        return np.asarray(logits)

    return run


def _moved(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Converts the shape (batch, H, W, C) to (C, H, W)."""
    _, height, width, channels = shape
    return channels, height, width


def _usage(info: dict[str, Any]) -> str:
    known = info["onnx"]
    shape = ", ".join(map(str, known["input"]["shape"]))
    _, channels, height, width = known["input"]["shape"]
    return f"""`{FILE}` (opset {OPSET}) takes normalized float32 `{INPUT}` [{shape}], \
with the channels first, in batches of any size. It returns `{OUTPUT}` \
[batch, {len(info["class_names"])}]. On test images, onnxruntime's logits differ from \
JAX's by at most {known["difference"]:.1e} relative to the largest logit.

```python
import onnxruntime

session = onnxruntime.InferenceSession("{FILE}")
# pixels: uint8 [batch, {height}, {width}, {channels}]
{pixels_to_input(info["preprocessing"])}
(logits,) = session.run(["{OUTPUT}"], {{"{INPUT}": x.transpose(0, 3, 1, 2)}})
```
"""
