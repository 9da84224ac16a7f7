"""The confusion matrix for a page, with cells that link to example mistakes."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from resnet_jax.report.page import Content, Gallery, Image, Matrix

MOST_CLASSES = 20  # maximum number of classes for a matrix with linked cells
_PER_PAIR = 2  # maximum number of images per pair of classes
_MOST = 60  # maximum number of images in the gallery
_SIDE = 96  # maximum side length of an image in pixels


def contents(
    probabilities: np.ndarray,
    images: Any,
    labels: np.ndarray,
    class_names: Sequence[str],
    confusion: Sequence[Sequence[int]],
) -> tuple[Matrix, list[Content]]:
    """Returns the confusion matrix and a gallery of mistakes that its cells link to.

    The most frequent confusions come first, each with its most confident mistakes.

    Args:
      probabilities: predicted probabilities [N, C].
      images: the test images [N, H, W, C'] uint8, in memory or in files.
      labels: true labels [N] int.
      confusion: counts [C][C], whose rows are the true classes.
    """
    predicted, confidence = probabilities.argmax(1), probabilities.max(1)
    counts = np.array(confusion)
    np.fill_diagonal(counts, 0)
    links: dict[tuple[int, int], str] = {}
    shown: list[Image] = []
    for flat in np.argsort(-counts, axis=None, kind="stable"):
        row, column = divmod(int(flat), len(counts))
        rows = np.flatnonzero((labels == row) & (predicted == column))
        if not counts[row, column] or len(shown) + len(rows[:_PER_PAIR]) > _MOST:
            break
        rows = rows[np.argsort(-confidence[rows], kind="stable")][:_PER_PAIR]
        for rank, index in enumerate(rows.tolist()):
            name = "" if rank else f"mistake-{row}-{column}"
            caption = (
                f"{class_names[column]} {100 * confidence[index]:.1f} %\n"
                f"true: {class_names[row]}"
            )
            shown.append(
                Image(_png(np.asarray(images[index : index + 1])), caption, name)
            )
        links[row, column] = f"mistake-{row}-{column}"
    return Matrix(class_names, confusion, links), [Gallery(shown)] if shown else []


def _png(image: np.ndarray) -> bytes:
    """Returns a uint8 image [1, H, W, C] as a PNG of at most _SIDE pixels per side."""
    from PIL import Image as pillow

    pixels = image[0, :, :, 0] if image.shape[-1] == 1 else image[0]
    picture = pillow.fromarray(pixels)
    picture.thumbnail((_SIDE, _SIDE))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()
