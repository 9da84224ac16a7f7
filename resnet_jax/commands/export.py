"""Write a network out, for PyTorch and to load again.

    resnet-jax export runs/hresnet hresnet-cifar10

The folder has model.safetensors with torchvision's names and layouts, config.json and a
model card with the scores on the test images. `train.py --pretrained DIR`, `evaluate.py
DIR` and resnet_jax.load_pretrained(DIR) read it.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from resnet_jax.errors import ConfigError
from resnet_jax.fields import ranged
from resnet_jax.report.options import SubjectConfig

if TYPE_CHECKING:  # JAX wakes up inside
    from resnet_jax.commands.evaluate import Evaluation


@dataclass(frozen=True)
class ExportConfig(SubjectConfig):
    """Write a network out."""

    export: Positional[str | None] = ranged(None, path="as typed")
    """The folder to write."""


def main(options: ExportConfig) -> None:
    """Scores the network on the test images, and writes it to the folder."""
    from resnet_jax import files
    from resnet_jax.commands.evaluate import evaluate
    from resnet_jax.devices import platform

    if options.weights is not None and options.export is None:  # the one name is DIR
        options = dataclasses.replace(options, run=None, export=options.run)
    if options.export is None:
        raise ConfigError("name the folder to write: resnet-jax export RUN DIR")
    platform.prepare(options.platform, options.devices)
    directory = Path(options.export)
    files.check_writable(directory.parent, "folder", "DIR")
    write(directory, evaluate(options, one="--export"))


def write(directory: Path, found: "Evaluation") -> None:
    """Writes the network to `directory`, and says so."""
    from resnet_jax.data.dataset import digest
    from resnet_jax.report.subject import info
    from resnet_jax.weights import export

    subject, test = found.subject, found.loader.splits.test
    said = info(subject, test.class_names)
    said["test_data"] = digest(test)
    said["metrics"] = {
        "note": found.note,
        "step": int(subject.state.step),
        **found.all.figures,
        "one_batch": found.one_batch.figures,
    }
    export.write(directory, subject.state.variables, said)
    print(f"exported: {directory}")
