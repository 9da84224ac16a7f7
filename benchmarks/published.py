"""Compares a published model's predictions in PyTorch with those in this package.

    python -m benchmarks.published resnet20 resnet20-12fca82f.th --normalize imagenet

Evaluates the weights file on CIFAR-10's 10,000 test images in both frameworks. Prints
the accuracies and mean cross-entropies, the largest difference between the logits, and
the number of predictions that differ. To evaluate a file without PyTorch, run `python
evaluate.py --weights FILE --model NAME`.
"""

from dataclasses import dataclass
from functools import partial

import tyro
from tyro.conf import Positional


@dataclass(frozen=True)
class Published:
    """Options of the benchmark."""

    model: Positional[str]
    """Name of the network."""
    file: Positional[str]
    """File with the weights."""
    normalize: str = "imagenet"
    """Normalization of the images, as in train.py."""
    data_dir: str | None = None
    """Data directory of tensorflow-datasets, as in train.py."""


def main(cfg: Published) -> None:
    import jax
    import numpy as np
    import torch

    import resnet_jax
    from benchmarks.torch_models import create_twin
    from resnet_jax import data, training
    from resnet_jax.config import AugmentConfig
    from resnet_jax.data import augment

    _, test = data.load_dataset("cifar10", cfg.data_dir)
    model = resnet_jax.create_model(cfg.model, num_classes=10)
    template = training.variable_shapes(model, (32, 32, 3))
    variables = resnet_jax.from_torch(resnet_jax.read_state_dict(cfg.file), template)
    # PyTorch reads the file with torch.load, independently of this package.
    saved = torch.load(cfg.file, map_location="cpu", weights_only=True)
    for wrapper in ("state_dict", "model", "model_state_dict"):
        saved = saved.get(wrapper, saved)
    saved = {name.removeprefix("module."): value for name, value in saved.items()}
    twin = create_twin(cfg.model).eval()
    # The file uses different names for the last layer and the shortcuts.
    named = {
        name.replace("linear.", "fc.").replace(".shortcut.", ".downsample."): value
        for name, value in saved.items()
    }
    twin.load_state_dict(named, strict=False)
    missing = {n for n in twin.state_dict() if "tracked" not in n} - named.keys()
    assert not missing, missing

    made = AugmentConfig(normalize=cfg.normalize)
    preprocess = data.make_preprocess(made, (32, 32, 3))
    mean, std = (
        torch.tensor(values).reshape(1, 3, 1, 1)
        for values in augment.parse_normalization(cfg.normalize)
    )
    apply = jax.jit(partial(model.apply, train=False))
    ours, theirs = [], []
    for start in range(0, len(test), 500):
        images = test.images[start : start + 500]
        ours.append(np.asarray(apply(variables, preprocess(images))))
        x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        with torch.inference_mode():
            theirs.append(twin((x - mean) / std).numpy())
    logits = {"PyTorch": np.concatenate(theirs), "here": np.concatenate(ours)}
    for name, values in logits.items():
        exact = values.astype(np.float64)
        losses = np.logaddexp.reduce(exact, -1) - exact[range(len(test)), test.labels]
        accuracy = (values.argmax(-1) == test.labels).mean()
        print(f"{name:8} accuracy {100 * accuracy:.2f} %  loss {losses.mean():.7f}")
    largest = np.abs(logits["here"] - logits["PyTorch"]).max()
    differ = (logits["here"].argmax(-1) != logits["PyTorch"].argmax(-1)).sum()
    print(
        f"largest difference between logits {largest:.2e}; {differ} predictions differ"
    )


if __name__ == "__main__":
    main(tyro.cli(Published, description=__doc__))
