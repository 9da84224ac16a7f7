"""Export a network for PyTorch, timm, onnxruntime or JAX.

    resnet-jax export runs/hresnet hresnet-cifar10
    resnet-jax export runs/pets pets-resnet18 --format timm
    resnet-jax export runs/hresnet hresnet-onnx --format onnx
    resnet-jax export runs/hresnet hresnet-stablehlo --format stablehlo

Writes model.safetensors (with torchvision's parameter names and layouts), config.json,
and a model card that reports the scores on the test images. `train.py --pretrained
DIR`, `evaluate.py DIR` and resnet_jax.load_pretrained(DIR) can read the folder. If timm
has the network, timm.create_model("local-dir:DIR", pretrained=True) can also read the
folder.

With --format onnx, the command instead writes model.onnx, whose input has the shape
[batch, C, H, W]. With --format stablehlo, it writes model.stablehlo, whose input has
the shape [batch, H, W, C]; jax.export can load the file without this package.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from tyro.conf import Positional

from resnet_jax.errors import ConfigError
from resnet_jax.fields import ranged
from resnet_jax.report.options import SubjectConfig

if TYPE_CHECKING:  # these import JAX
    from resnet_jax.commands.evaluate import Evaluation
    from resnet_jax.report.subject import Subject
    from resnet_jax.weights.program import Network

_TRIED = 64  # number of test images on which an exported program is checked

Format = Literal["torch", "timm", "onnx", "stablehlo"]


@dataclass(frozen=True)
class ExportConfig(SubjectConfig):
    """What to write."""

    export: Positional[str | None] = ranged(None, path="as typed")
    """Folder to write."""
    format: Format = "torch"
    """Format of the network: torch (weights for PyTorch and this package), timm (the
    same, but only for networks that timm has), onnx (a graph for onnxruntime and
    others, checked against JAX) or stablehlo (a program that JAX runs without this
    package)."""


class Writer(NamedTuple):
    """An export format: its file name, its writer and a check to run before scoring."""

    file: str  # name of the file that contains the network
    write: Callable[[Path, "Network", dict[str, Any]], None]
    check: Callable[["Subject"], None] = lambda subject: None  # called before scoring


def main(options: ExportConfig) -> None:
    """Scores the network on the test images and writes it to a folder."""
    from resnet_jax import files
    from resnet_jax.commands.evaluate import evaluate
    from resnet_jax.devices import platform
    from resnet_jax.weights import export

    if options.weights is not None and options.export is None:  # only DIR is given
        options = dataclasses.replace(options, run=None, export=options.run)
    if options.export is None:
        raise ConfigError("specify the output folder: resnet-jax export RUN DIR")
    platform.prepare(options.platform, options.devices)
    directory = Path(options.export)
    files.check_writable(directory.parent, "folder", "DIR")
    writer = FORMATS[options.format]()
    export.check_free(directory, writer.file)
    found = evaluate(options, one="an export", check=writer.check)
    write(directory, found, options.format)


def write(directory: Path, found: "Evaluation", format: Format = "torch") -> None:
    """Writes the network to `directory` and prints the path."""
    import numpy as np

    from resnet_jax import waiting
    from resnet_jax.data.dataset import digest
    from resnet_jax.report.subject import info
    from resnet_jax.weights.program import Network

    subject, test = found.subject, found.loader.splits.test
    said = info(subject, test.class_names)
    said["test_data"] = digest(test)
    said["metrics"] = {
        "note": found.note,
        "step": int(subject.state.step),
        **found.all.figures,
        "one_batch": found.one_batch.figures,
    }
    tried = found.preprocess(np.asarray(test.take(slice(_TRIED)).images))
    network = Network(subject.model, subject.state.variables, np.asarray(tried))
    writer = FORMATS[format]()
    with waiting.clock(f"writing and checking {writer.file}"):
        writer.write(directory, network, said)
    print(f"exported: {directory}")


def _torch() -> Writer:
    from resnet_jax.weights import export, exported

    return Writer(
        exported.WEIGHTS,
        lambda directory, network, info: export.write(
            directory, dict(network.variables), info
        ),
    )


def _timm() -> Writer:
    from resnet_jax.weights import export

    def check(subject: "Subject") -> None:
        model = subject.cfg.model
        if not export.is_timms(dataclasses.asdict(model)):
            raise ConfigError(
                f"timm has no {model.model} with these options: use --format torch "
                "to export it for PyTorch instead"
            )

    return _torch()._replace(check=check)


def _onnx() -> Writer:
    from resnet_jax.weights import onnx

    onnx.check_installed()
    return Writer(onnx.FILE, onnx.write)


def _stablehlo() -> Writer:
    from resnet_jax.weights import stablehlo

    return Writer(stablehlo.FILE, stablehlo.write)


FORMATS: dict[Format, Callable[[], Writer]] = {
    "torch": _torch,
    "timm": _timm,
    "onnx": _onnx,
    "stablehlo": _stablehlo,
}
