"""Writes a page about a folder of images, with class counts and augmented samples."""

import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from resnet_jax.config import Config
from resnet_jax.data import pillow, transforms
from resnet_jax.data.augment import make_augment, make_preprocess, parse_normalization
from resnet_jax.data.survey import Survey, imbalance
from resnet_jax.report import chosen, gallery
from resnet_jax.report.page import Content, Picture, Table, write

NUM_CLASSES, PER_CLASS, NUM_NAMED = 10, 5, 20
_MANY = 3.0  # class imbalance (largest / smallest) above which a hint is given
_SIZES = "Width and height of the images in pixels"


def count_rows(surveys: Sequence[Survey], names: Sequence[str]) -> list[list[str]]:
    """Returns a row (name, counts by split) for each class, and a row of totals."""
    counts = np.stack([survey.counts for survey in surveys], axis=1)
    rows = [*zip(names, counts, strict=True), ("all", counts.sum(0))]
    return [[name, *(f"{count:,}" for count in row)] for name, row in rows]


def size_rows(surveys: Sequence[Survey]) -> list[list[str]]:
    """Returns rows with the minimum, median and maximum of the width and height."""
    shapes = np.concatenate([survey.shapes for survey in surveys])
    if not len(shapes):
        return []
    return [
        [name, *(f"{f(shapes[:, axis]):g}" for f in (np.min, np.median, np.max))]
        for axis, name in enumerate(("width", "height"))
    ]


def unreadable(surveys: Sequence[Survey]) -> tuple[str, list[list[str]]]:
    """Returns a line about unreadable files, and rows that describe them.

    Each row is (file, reason). Only the first NUM_NAMED files have rows.
    """
    bad = [one for survey in surveys for one in survey.bad]
    if not bad:
        return "every image can be read", []
    said = f"unreadable images: {len(bad):,}; --skip-bad-images skips them in training"
    if len(bad) > NUM_NAMED:
        said += f"; the first {NUM_NAMED}:"
    return said, [[str(path), why] for path, why in bad[:NUM_NAMED]]


def notes(surveys: Sequence[Survey], names: Sequence[str]) -> list[str]:
    """Returns lines about formats, ignored files and class imbalance."""
    kinds = sum((survey.kinds for survey in surveys), Counter[str]())
    lines = [f"formats: {_counted(kinds)}"] if kinds else []
    for split in (survey.split for survey in surveys):
        if split.ignored:
            kinds_of = _counted(split.ignored)
            lines.append(
                f"{split.root}: ignored files without an image suffix: {kinds_of}"
            )
    counts = surveys[0].counts
    most, least = int(counts.argmax()), int(counts.argmin())
    ratio = imbalance(counts)
    lines.append(
        f"class imbalance of {surveys[0].split.root.name}: {ratio:.3g} (largest: "
        f"{names[most]}, {counts[most]:,} images; smallest: {names[least]}, "
        f"{counts[least]:,})"
    )
    if ratio > _MANY:
        lines.append(
            "hint: --class-weights balanced gives rare classes more weight in the "
            "loss, and --sampler balanced draws them more often; one of the two is "
            "enough"
        )
    return lines


def _counted(kinds: Counter[str]) -> str:
    return ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())


def write_page(
    path: Path,
    data_dir: str,
    surveys: Sequence[Survey],
    names: Sequence[str],
    cfg: Config,
) -> None:
    """Writes a page with class counts and with images before and after augmentation.

    Raises:
      ConfigError: if the page cannot be written, or cfg.augment cannot be used.
    """
    splits = [survey.split.root.name for survey in surveys]
    counts = np.stack([survey.counts for survey in surveys], axis=1)
    images, drawn, labels = read_samples(surveys[0], cfg)
    said, bad = unreadable(surveys)
    with tempfile.TemporaryDirectory() as folder:
        bars, shown = Path(folder, "counts.png"), Path(folder, "samples.png")
        gallery.plot_counts(counts, names, splits, bars)
        sections: dict[str, list[Content]] = {
            "Classes": [
                Picture(bars, "Number of images of each class"),
                Table(
                    ("class", *splits),
                    count_rows(surveys, names),
                    "Number of images of each class",
                ),
            ],
            "Files": [
                Table(("", "min", "median", "max"), size_rows(surveys), _SIZES),
                *notes(surveys, names),
                said,
                *([Table(("file", "reason"), bad, "Unreadable files")] if bad else []),
            ],
        }
        if len(images):
            augmented = augment_samples(drawn, labels, len(names), cfg)
            shown_names = [names[label] for label in labels]
            gallery.plot_samples(images, augmented, shown_names, shown)
            alt = (
                "Left: images as used in evaluation; right: the same images as used "
                "in training"
            )
            sections["Samples"] = [
                _describe(cfg),
                Picture(shown, alt, has_images=True),
            ]
        write(path, f"{data_dir}: {counts.sum():,} images", sections)


def _describe(cfg: Config) -> str:
    size, kept = _side(cfg), cfg.data.kept
    cfg_of = cfg.augment
    parts = [
        f"random region covering at least {cfg_of.crop_scale:g} of the image area, "
        f"resized to {_train_side(cfg)} pixels per side"
        if cfg_of.random_resized_crop
        else "",
        "TrivialAugmentWide" if cfg_of.auto_augment == "ta_wide" else "",
        f"color jitter {cfg_of.color_jitter:g}" if cfg_of.color_jitter else "",
        f"random crop with padding {cfg_of.crop_padding} ({cfg_of.crop_fill})"
        if cfg_of.crop_padding
        else "",
        f"flip {cfg_of.flip}" if cfg_of.flip != "none" else "",
        f"cutout {cfg_of.cutout}" if cfg_of.cutout else "",
        f"random erasing {cfg_of.random_erasing:g}" if cfg_of.random_erasing else "",
        f"mixup {cfg_of.mixup:g}" if cfg_of.mixup else "",
        f"cutmix {cfg_of.cutmix:g}" if cfg_of.cutmix else "",
    ]
    made = ", ".join(part for part in parts if part) or "none"
    return (
        f"For evaluation, the shorter side is resized to {round(size / kept)} "
        f"pixels, and the image is center-cropped to {size}x{size} pixels. "
        f"Augmentation: {made}."
    )


def _side(cfg: Config) -> int:
    from resnet_jax.data.sources import image_shape

    return image_shape(cfg.data)[0]


def _train_side(cfg: Config) -> int:
    from resnet_jax.data.sources import train_shape

    return train_shape(cfg.data)[0]


def read_samples(
    survey: Survey, cfg: Config
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Reads up to 5 images from each of up to 10 classes, spread evenly over the data.

    Returns:
      A tuple (images, augmented, labels). `images` are [N, S, S, 3] uint8, resized and
      cropped as in evaluation. `augmented` are the same images, [N, T, T, 3] uint8,
      after the part of the augmentation that runs on the host. `labels` are [N].
    """
    transform = transforms.Transform(
        cfg.augment, cfg.seed, _train_side(cfg), cfg.data.kept, cfg.data.interpolation
    )
    labels = np.where(survey.good, survey.split.labels, -1)
    there = np.unique(labels[labels >= 0])
    size = _side(cfg)
    images, drawn, found = [], [], []
    for label in there[chosen.spread(len(there), NUM_CLASSES)]:
        rows = np.flatnonzero(labels == label)
        for row in rows[chosen.spread(len(rows), PER_CLASS)]:
            path = survey.split.paths[row]
            how = {"crop_pct": cfg.data.kept, "interpolation": cfg.data.interpolation}
            images.append(pillow.read_image(path, size=size, **how))
            with pillow.opened(path) as file:
                drawn.append(transform(file, int(row), epoch=0, turn=0))
            found.append(label)
    none = np.zeros((0, size, size, 3), np.uint8)
    whole, augmented = (np.stack(part) if part else none for part in (images, drawn))
    return whole, augmented, np.array(found, np.int32)


def augment_samples(
    images: np.ndarray, labels: np.ndarray, num_classes: int, cfg: Config
) -> np.ndarray:
    """Returns `images` as uint8 after the augmentation that runs on the device."""
    shape = images.shape[1:]
    preprocess = make_preprocess(cfg.augment, shape)
    augment = jax.jit(make_augment(cfg.augment, preprocess, num_classes))
    x, _ = augment(jax.random.key(cfg.seed), images, labels)
    mean, std = parse_normalization(cfg.augment.normalize or "cifar10", shape[-1])
    pixels = np.asarray(x) * np.array(std) + np.array(mean)
    found: np.ndarray = np.rint(255 * pixels).clip(0, 255).astype(np.uint8)
    return found
