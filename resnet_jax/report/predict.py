"""What a network makes of files of images, and where in them it comes from."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax import fields, files
from resnet_jax.data import folder, sources
from resnet_jax.data.augment import Images, make_preprocess
from resnet_jax.data.dataset import Dataset, Splits
from resnet_jax.data.loader import Loader
from resnet_jax.devices.mesh import make_mesh
from resnet_jax.errors import ConfigError, DataError, first_line
from resnet_jax.models.summary import structure
from resnet_jax.report import figures, scores
from resnet_jax.report.subject import Subject
from resnet_jax.training import evaluation

TOP = 5


def predict_files(
    subject: Subject, paths: Sequence[str], saliency_dir: Path | None = None
) -> None:
    """Prints the most likely classes of each image with their probabilities.

    An image is brought to the data set's size as a folder's are, and from there goes
    the way of the data's own.

    Args:
      saliency_dir: where the Grad-CAM of each image is saved, as NAME.png.

    Raises:
      DataError: some cannot be read; the others are done before.
    """
    cfg, class_names = subject.cfg, subject.class_names
    if class_names is None:  # weights that do not say: the data set does
        class_names = sources.describe(cfg.data).load()[1].class_names
    # Only images of any size are resized on the host; others on the device.
    is_cropped = sources.is_cropped(cfg.data)
    stored = fields.replace(cfg.data, in_channels=None)
    stored = stored if is_cropped else fields.replace(stored, image_size=None)
    size, _, channels = sources.image_shape(stored)
    crop_pct = cfg.data.crop_pct if is_cropped else 1.0
    preprocess = make_preprocess(cfg.augment, subject.image_shape)
    if saliency_dir is not None:
        files.check_writable(saliency_dir, "folder", "RUN")
    read, bad = [], []
    files_of = [
        list(folder.list_images(Path(path))) if Path(path).is_dir() else [Path(path)]
        for path in paths
    ]
    for path in itertools.chain.from_iterable(files_of):
        try:
            image = folder.read_image(
                path,
                size=size,
                crop_pct=crop_pct,
                channels=channels,
                interpolation=cfg.data.interpolation,
            )
            read.append((path, image))
        except Exception as error:  # Pillow's readers raise of every kind
            bad.append(f"{path} ({first_line(error)})")
    images = np.stack([image for _, image in read]) if read else np.zeros((0, 1))
    probabilities = _probabilities(subject, preprocess, images, class_names)
    for index, (path, image) in enumerate(read):
        print(path)
        order = np.argsort(-probabilities[index], kind="stable")[:TOP]
        likely = [(class_names[label], probabilities[index, label]) for label in order]
        for name, share in likely:
            print(f"  {100 * share:6.2f} %  {name}")
        if saliency_dir is not None:
            heat = grad_cam(
                subject.model,
                subject.state.variables,
                preprocess(image[None]),
                order[:1],
            )
            target = saliency_dir / f"{index}-{path.stem}.png"
            figures.plot_prediction(image, np.asarray(heat[0]), likely, target)
            print(f"  {target}")
    if bad:
        total = len(read) + len(bad)
        raise DataError(f"{len(bad)} of {total} cannot be read: {', '.join(bad)}")
    if not read:
        raise DataError(f"{', '.join(paths)}: there is no image")


def _probabilities(
    subject: Subject, preprocess: Any, images: Any, class_names: Sequence[str]
) -> np.ndarray:
    """[N, C], each image by itself, whatever the others are."""
    num = len(images)
    whole = Dataset(images, np.zeros(num, np.int32), tuple(class_names))
    none = Dataset(np.zeros(0), np.zeros(0, np.int32), ())
    cfg = fields.replace(subject.cfg.data, eval_batch_size=1)
    loader = Loader(make_mesh(1), Splits(none, none, whole, {}), cfg)
    variables = subject.state.variables
    logits = evaluation.predict(subject.model, preprocess, loader, variables, whole)
    return scores.softmax(logits)


def grad_cam(
    model: nn.Module, variables: dict[str, Any], images: Images, classes: Images
) -> jax.Array:
    """Maps [B, h, w] in [0, 1] of what in the last block speaks for `classes` [B].

    Selvaraju et al. 2017, equations 1 and 2: the block's output, its channels weighted
    by the mean gradient of the class's logit, negative parts cut, scaled to a largest
    value of 1 (0 everywhere where nothing speaks for the class).

    Args:
      images: [B, H, W, C], as the network takes them.

    Raises:
      ConfigError: the network has no residual block.
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
                    y = y + change  # the gradient by it is that by y
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
