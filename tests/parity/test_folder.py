"""Compares folders of odd images with torchvision.datasets.ImageFolder."""

import warnings

import numpy as np
import pytest
from odd_images import ODD, write

from resnet_jax.data import folder

torchvision = pytest.importorskip("torchvision", reason="parity needs torchvision")

pytestmark = pytest.mark.parity


def test_odd_images_are_torchvisions(tmp_path):
    names = ("cat", "наша собака", "Ünïcode & space")
    for split in ("train", "test"):
        for name in names:
            (tmp_path / split / name / "more of it").mkdir(parents=True)
    homes = [tmp_path / "train" / name for name in names]
    homes += [home / "more of it" for home in homes]
    for index, name in enumerate(ODD):
        write(name, homes[index % len(homes)] / name)
    write("animated.gif", homes[0] / "animated.gif")
    (homes[1] / "notes.txt").touch()
    for name in names:
        write("rgb.png", tmp_path / "test" / name / "0.png")
    transforms = torchvision.transforms
    theirs = torchvision.datasets.ImageFolder(
        tmp_path / "train",
        transforms.Compose([transforms.Resize(32), transforms.CenterCrop(28)]),
    )
    listing = folder.scan(tmp_path)
    train = listing.splits[0]
    images, labels = folder.load(train, size=28, crop_pct=0.875)
    assert list(listing.class_names) == theirs.classes
    assert labels.tolist() == theirs.targets
    assert [str(path) for path in train.paths] == [path for path, _ in theirs.samples]
    assert len(images) == len(ODD)
    for path, image, index in zip(train.paths, images, range(len(ODD)), strict=True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # for palettes with alpha
            expected = np.asarray(theirs[index][0])
        np.testing.assert_array_equal(image, expected, err_msg=path.name)
