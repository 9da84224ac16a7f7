"""Classifies image files and shows the regions on which the predictions depend."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax import fields, files, waiting
from resnet_jax.config_data import DataConfig
from resnet_jax.data import decoding, folder, sources
from resnet_jax.data.augment import Images, make_preprocess
from resnet_jax.devices import mesh
from resnet_jax.errors import ConfigError, DataError
from resnet_jax.layers import library
from resnet_jax.models.summary import structure
from resnet_jax.report import figures, scores, tables
from resnet_jax.report.subject import Subject
from resnet_jax.training import evaluation

BATCH = 64  # maximum number of files at a time
_BATCH_SIZE = 2**24  # maximum number of values in a batch of more than one image
Likely = list[tuple[int, str, float]]  # (label, class, probability), most likely first


def predict_files(
    subject: Subject,
    paths: Sequence[str],
    saliency_dir: Path | None = None,
    output: Path | None = None,
    top_k: int = 5,
) -> None:
    """Prints or writes the most likely classes of each image with their probabilities.

    Images are resized to the image size of the data set, in the same way as images from
    a folder, and are then preprocessed like images of the data set. The batch size
    affects only the rounding of the results.

    Args:
      saliency_dir: folder for the Grad-CAM figures, NUMBER-NAME.png for each image, or
        None to draw no figures.
      output: file to write instead of printing, with a row for each image; see tables.
      top_k: maximum number of classes to show for each image.

    Raises:
      ConfigError: if a file cannot be written.
      DataError: if some images cannot be read; the other images are classified first.
    """
    cfg, class_names = subject.cfg, subject.class_names
    if class_names is None:  # use the names from the data set
        class_names = sources.load_test(cfg.data).test.class_names
    preprocess = make_preprocess(cfg.augment, subject.image_shape)
    if saliency_dir is not None:
        files.check_writable(saliency_dir, "folder", "RUN")
    every = [path for name in paths for path in _files_of(Path(name))]
    batches = _read_batches(every, cfg.data, subject.image_shape)
    probabilities_of = _make_probabilities(subject, preprocess)
    num_read, bad = 0, []
    with contextlib.ExitStack() as stack:
        show = _open(output, min(top_k, len(class_names)), stack)
        # Printed lines already show progress; None shows the bar only on a terminal.
        hidden = None if output is not None and len(every) > BATCH else True
        bar = stack.enter_context(waiting.bar(len(every), "prediction", disable=hidden))
        for batch in batches:
            bad += [f"{path} ({reason})" for path, reason in batch.bad]
            found = probabilities_of(batch.images)
            for path, image, own in zip(batch.paths, batch.images, found, strict=True):
                order = np.argsort(-own, kind="stable")[:top_k]
                likely = [(int(i), class_names[i], float(own[i])) for i in order]
                show(path, likely)
                if saliency_dir is not None:
                    target = saliency_dir / f"{num_read}-{path.stem}.png"
                    _save_saliency(subject, preprocess, image, likely, target)
                    if output is None:
                        print(f"  {target}")
                num_read += 1
            bar.update(len(batch.paths) + len(batch.bad))
        failure = f"{len(bad)} of {len(every)} files cannot be read: {', '.join(bad)}"
        if not num_read:
            raise DataError(failure if bad else f"{', '.join(paths)}: no images found")
    if output is not None:
        print(f"predictions: {output}, {num_read} image{'s' * (num_read != 1)}")
    if bad:
        raise DataError(failure)


def _read_batches(
    every: Sequence[Path], cfg: DataConfig, image_shape: tuple[int, int, int]
) -> Iterator[decoding.Decoded]:
    """Returns an iterator over batches of images, decoded as `cfg` specifies."""
    # Only images of varying sizes are resized on the host; the others are resized on
    # the device.
    is_cropped = sources.is_cropped(cfg)
    stored = fields.replace(cfg, in_channels=None)
    stored = stored if is_cropped else fields.replace(stored, image_size=None)
    size, _, channels = sources.image_shape(stored)
    side = max(size, *image_shape[:2])
    return decoding.read_batches(
        *(every, max(min(BATCH, _BATCH_SIZE // (3 * side * side)), 1)),
        size=size,
        crop_pct=cfg.kept if is_cropped else 1.0,
        channels=channels,
        interpolation=cfg.interpolation,
    )


def _files_of(path: Path) -> list[Path]:
    return list(folder.list_images(path)) if path.is_dir() else [path]


def _print(path: Path, likely: Likely) -> None:
    print(path)
    for _, name, share in likely:
        print(f"  {100 * share:6.2f} %  {name}")


def _columns(num: int) -> dict[str, type]:
    """Returns the names and types of the columns for `num` classes per image."""
    each = range(1, num + 1)
    return {
        **{"path": str, "label": int, "class": str, "probability": float},
        **{f"class_{rank}": str for rank in each},
        **{f"probability_{rank}": float for rank in each},
    }


def _open(
    output: Path | None, num: int, stack: contextlib.ExitStack
) -> Callable[[Path, Likely], None]:
    """Returns a function that prints the `num` classes of an image, or writes a row."""
    if output is None:
        return _print
    write = stack.enter_context(tables.writing(output, _columns(num)))

    def show(path: Path, likely: Likely) -> None:
        names = [name for _, name, _ in likely]
        shares = [share for _, _, share in likely]
        write([[str(path), *likely[0], *names, *shares]])

    return show


def _save_saliency(
    subject: Subject, preprocess: Any, image: np.ndarray, likely: Likely, target: Path
) -> None:
    inputs, label = preprocess(image[None]), np.array([likely[0][0]])
    variables = subject.state.variables
    heat = np.asarray(grad_cam(subject.model, variables, inputs, label)[0])
    shares = [(name, share) for _, name, share in likely]
    figures.plot_prediction(image, heat, shares, target)


def _make_probabilities(
    subject: Subject, preprocess: Any
) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a function that maps images [N, H, W, C] to probabilities [N, classes].

    Batches are padded to a power-of-two size, so that few programs are compiled.
    """
    variables = mesh.replicate(mesh.make_mesh(1), subject.state.variables)

    @library.jit
    def logits(variables: Any, images: jax.Array) -> jax.Array:
        batch = {"images": images}
        return evaluation.logits_of(subject.model, preprocess, variables, batch)

    def probabilities(images: np.ndarray) -> np.ndarray:
        num = len(images)
        if not num:
            return np.zeros((0, 1))
        size = 1 << (num - 1).bit_length()
        rows = np.minimum(np.arange(size), num - 1)
        return scores.softmax(np.asarray(logits(variables, images[rows]))[:num])

    return probabilities


def grad_cam(
    model: nn.Module, variables: dict[str, Any], images: Images, classes: Images
) -> jax.Array:
    """Returns Grad-CAM maps [B, h, w] of the last block, with values in [0, 1].

    Each map is the sum of the block's output channels, weighted by the mean gradients
    of the class's logit (Selvaraju et al. 2017, equations 1 and 2). Negative values are
    set to 0, and the map is scaled to a maximum of 1. If there is no evidence for the
    class, the map is 0 everywhere.

    Args:
      images: preprocessed images [B, H, W, C].
      classes: the class to explain for each image, [B] int.

    Raises:
      ConfigError: if the network has no residual blocks.
    """
    _, height, width, channels = images.shape
    blocks = structure(model, (height, width, channels)).blocks
    if not blocks:
        raise ConfigError("saliency needs a network with residual blocks")
    last = blocks[-1]

    def logits(change: jax.Array) -> tuple[jax.Array, jax.Array]:
        seen = []

        def add(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            y = call(*args, **kwargs)
            if ".".join(context.module.path) == last.name:
                if context.method_name == "__call__":
                    y = y + change  # `change` has the same gradient as y
                    seen.append(y)
            return y

        with nn.intercept_methods(add):
            out: Any = model.apply(variables, images, train=False)
        return jnp.take_along_axis(out, classes[:, None], 1).sum(), seen[0]

    zeros = jnp.zeros((len(images), *last.output), jnp.float32)
    gradient, maps = jax.grad(logits, has_aux=True)(zeros)
    weights = gradient.mean((1, 2), keepdims=True)
    cam = nn.relu((weights * maps).sum(-1))
    largest = cam.max((1, 2), keepdims=True)
    return jnp.where(largest > 0, cam / jnp.where(largest > 0, largest, 1), 0)
