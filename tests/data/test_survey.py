import numpy as np
import pytest
from odd_images import write
from PIL import Image

from resnet_jax.data import folder, survey


@pytest.fixture
def root(tmp_path):
    """Makes two classes, with three valid images and three that cannot be read."""
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            write("rgb.png", tmp_path / split / name / "0.png")
    cat = tmp_path / "train" / "cat"
    write("palette.png", cat / "1.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise
    Image.new("L", (40, 6)).save(cat / "2.jpg", exif=exif)
    write("float.tif", cat / "deep.tif")
    Image.new("L", (1, 60_000)).save(cat / "strip.png")
    (tmp_path / "train" / "dog" / "1.png").write_bytes(b"no image")
    (cat / "notes.txt").touch()
    return tmp_path


def test_every_file_is_looked_at(root):
    split = folder.scan(root).splits[0]
    found = survey.look(split, 256)
    assert found.counts.tolist() == [3, 1]
    good = [split.paths[index].name for index in np.flatnonzero(found.good)]
    assert good == ["0.png", "1.png", "2.jpg", "0.png"]
    assert found.shapes.tolist() == [[20, 12], [20, 12], [6, 40], [20, 12]]
    assert found.kinds == {"PNG RGB": 2, "PNG P": 1, "JPEG L": 1}
    (deep, floats), (strip, large), (bad, unknown) = found.bad
    assert deep.name == "deep.tif" and "pixels have no known range" in floats
    assert strip.name == "strip.png" and "would become 256x15360000" in large
    assert bad.parent.name == "dog" and unknown.startswith("cannot identify")


def test_what_is_left_out_is_what_training_leaves_out(root):
    split = folder.scan(root).splits[0]
    images, labels = folder.load(split, size=224, crop_pct=0.875, skip_bad=True)
    found = survey.look(split, 256)
    assert len(images) == found.good.sum()
    np.testing.assert_array_equal(labels, split.labels[found.good])


def test_a_class_without_a_readable_image_counts_none(root):
    (root / "train" / "dog" / "0.png").write_bytes(b"")
    counts = survey.look(folder.scan(root).splits[0], 256).counts
    assert counts.tolist() == [3, 0]
    assert survey.imbalance(counts) == np.inf
    assert survey.imbalance(np.array([6, 4])) == 1.5
