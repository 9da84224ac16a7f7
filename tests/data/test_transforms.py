"""Augmentation on the host while training reads images."""

import numpy as np
import pytest
from PIL import Image

from resnet_jax import data, devices, training
from resnet_jax.config import AugmentConfig, DataConfig
from resnet_jax.data import pillow, reading, stream, transforms
from resnet_jax.data.dataset import Dataset
from resnet_jax.errors import ConfigError, DataError

CROP = AugmentConfig(random_resized_crop=True)
ALL = AugmentConfig(random_resized_crop=True, auto_augment="ta_wide", color_jitter=0.3)


@pytest.fixture
def photos(tmp_path):
    """Makes a folder of three classes with images of several sizes and types."""
    rng = np.random.default_rng(0)
    sizes = [(60, 40), (40, 60), (33, 33), (80, 31)]
    for split, count in (("train", 4), ("test", 2)):
        for name in "abc":
            home = tmp_path / "photos" / split / name
            home.mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 256, (*sizes[index][::-1], 3), np.uint8)
                suffix = ("jpg", "png")[index % 2]
                Image.fromarray(pixels).save(home / f"{index}.{suffix}")
    return tmp_path / "photos"


def make(photos, cfg=ALL, seed=0, **fields):
    """Returns the augmented training split of `photos`."""
    own = DataConfig(dataset="folder", data_dir=str(photos), image_size=24, **fields)
    splits = data.load(data.for_training(own, cfg))
    return data.drawn(splits.train, cfg, own, seed)


def draw(dataset, indices, epoch=0, turns=None):
    indices = np.asarray(indices)
    turns = np.zeros(len(indices), int) if turns is None else np.asarray(turns)
    return reading.read_training(dataset, indices, epoch, turns)["images"]


def test_what_is_drawn_depends_on_seed_epoch_index_and_turn_alone(photos):
    train = make(photos)
    whole = draw(train, range(12))
    assert whole.shape == (12, 24, 24, 3) and whole.dtype == np.uint8
    np.testing.assert_array_equal(draw(train, [7, 2, 7]), whole[[7, 2, 7]])
    np.testing.assert_array_equal(draw(make(photos), [3]), whole[[3]])
    for other in (
        draw(train, range(12), epoch=1),
        draw(train, range(12), turns=[1] * 12),
        draw(make(photos, seed=1), range(12)),
    ):
        assert all((a != b).any() for a, b in zip(other, whole, strict=True))
    # Indices refer to the whole split, even if training uses only a part.
    part = train.take(np.array([5, 9]))
    np.testing.assert_array_equal(draw(part, [0, 1]), whole[[5, 9]])


def test_evaluation_has_the_images_themselves(photos):
    train, plain = make(photos), make(photos, AugmentConfig(), stream=True)
    assert plain.images.draw is None
    np.testing.assert_array_equal(np.asarray(train.images), np.asarray(plain.images))
    np.testing.assert_array_equal(train.labels, plain.labels)


def test_sizes_of_training_and_evaluation_are_apart(photos):
    train = make(photos, CROP, train_size=16, resize=30)
    assert train.images.train_shape == (16, 16, 3)
    assert draw(train, [0, 1]).shape == (2, 16, 16, 3)
    with Image.open(photos / "train" / "a" / "1.png") as file:  # 40 x 60
        resized = file.resize((30, 45), Image.Resampling.BILINEAR)
    found = np.asarray(train.images[[1]])[0]
    np.testing.assert_array_equal(found, np.asarray(resized)[10:34, 3:27])
    assert data.train_shape(DataConfig(train_size=16, image_size=24)) == (16, 16, 3)
    assert data.train_shape(DataConfig(image_size=24)) == (24, 24, 3)
    assert data.train_shape(DataConfig()) == (32, 32, 3)
    larger = DataConfig(dataset="folder", image_size=24, resize=30, train_size=40)
    assert data.train_shape(larger) == (40, 40, 3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"resize": 200}, "resize 200 is smaller than the crop of 224"),
        ({"resize": 29, "image_size": 30}, "resize 29 is smaller than the crop of 30"),
        ({"resize": 300, "crop_pct": 0.9}, "resize and crop_pct both set the image"),
    ],
)
def test_a_crop_larger_than_the_image_is_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        DataConfig(dataset="folder", **fields)
    # All images have one size and are not cropped.
    assert DataConfig(**fields).dataset == "cifar10"


def test_images_in_memory_are_augmented_too():
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), np.uint8)
    held = Dataset(images, np.arange(5, dtype=np.int32), tuple("abcde"))
    cfg = AugmentConfig(auto_augment="ta_wide")
    train = data.drawn(held, cfg, DataConfig(), 0)
    found = draw(train, range(5))
    assert found.shape == images.shape
    expected = []
    for index, image in enumerate(images):
        rng = np.random.default_rng([0, 0, index, 0])
        name, magnitude = transforms.draw_operation(rng)
        changed = transforms.operate(
            Image.fromarray(image[..., 0]), name, magnitude, Image.Resampling.BILINEAR
        )
        expected.append(np.asarray(changed)[..., None])
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(np.asarray(train.images), images)
    assert data.drawn(held, AugmentConfig(mixup=1.0), DataConfig(), 0) is held


@pytest.mark.parametrize(
    "held_out", [{"max_train_samples": 7}, {"validation_split": 0.3}]
)
def test_streamed_and_in_memory_are_augmented_alike(
    held_out, small_cifar, prepared_dir
):
    """Runs can resume from memory or files, on any part of the split."""
    found = []
    for is_streamed in (False, True):
        own = DataConfig(data_dir=str(prepared_dir), stream=is_streamed, **held_out)
        train = data.drawn(data.load(own).train, ALL, own, 0)
        found.append(draw(train, range(len(train))))
    np.testing.assert_array_equal(*found)


def test_a_flip_by_the_pixels_needs_the_same_pixels():
    with pytest.raises(ConfigError, match="flip alternating recognizes images by"):
        AugmentConfig(flip="alternating", color_jitter=0.1)


def test_without_grain_it_is_said_at_once(photos, monkeypatch):
    monkeypatch.setattr(transforms.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs grain: pip install -e"):
        make(photos)


def test_an_upright_region_is_taken_of_an_image_that_lies(tmp_path):
    """With EXIF orientation 6, the image is stored on its side."""
    upright = np.zeros((90, 60, 3), np.uint8)
    upright[:45] = 255  # white above
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(np.rot90(upright)).save(path, exif=exif, quality=100)
    with Image.open(path) as file:
        assert pillow.upright_size(file) == (60, 90)
        box = transforms.reduce(file, transforms.Box(0, 0, 60, 44), 12)
        assert file.size == (45, 30) and box == transforms.Box(0, 0, 30, 22)
        image = transforms.resized_crop(
            pillow.decode(file), box, 12, Image.Resampling.BILINEAR
        )
    assert np.asarray(image).min() > 200


def test_an_image_that_cannot_be_read_is_named(photos):
    path = photos / "train" / "b" / "0.jpg"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(DataError, match=f"{path} cannot be read .*: remove it"):
        draw(make(photos), range(12))


def test_the_order_says_how_often_an_image_came_before():
    batches = [np.array([3, 1, 3]), np.array([3, 2, 1])]
    turns = reading.turns_of(batches)
    assert [t.tolist() for t in turns] == [[0, 0, 1], [2, 0, 1]]
    order = data.epoch_batches(10, [4, 4, 2], 0, seed=0, repeats=2)
    turns = np.concatenate(reading.turns_of(order))
    np.testing.assert_array_equal(turns, [0, 1] * 5)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.process)])
def test_a_loader_gives_what_is_drawn_from_any_step_on(photos, workers):
    own = DataConfig(
        **{"dataset": "folder", "data_dir": str(photos), "image_size": 24},
        **{"batch_size": 5, "workers": workers, "repeated_augmentation": 2},
    )
    splits = data.load(data.for_training(own, ALL))
    splits = splits._replace(train=data.drawn(splits.train, ALL, own, 4))
    order = training.make_order(4, 1, repeats=own.repeated_augmentation)
    loader = data.Loader(devices.make_mesh(1), splits, own, order, epochs=3)
    batches = order(12, loader.sizes, 1)
    turns = reading.turns_of(batches)
    expected = [
        reading.read_training(splits.train, rows, 1, turn)
        for rows, turn in zip(batches, turns, strict=True)
    ]
    for start in (0, 2, 1):  # each restarted, as when resuming
        for batch, whole in zip(loader.train(1, start), expected[start:], strict=True):
            np.testing.assert_array_equal(batch["images"], whole["images"])
            np.testing.assert_array_equal(batch["labels"], whole["labels"])
    loader.close()
    forms = [batch["images"].shape for batch in loader.examples()]
    assert sorted(forms) == [(2, 24, 24, 3), (5, 24, 24, 3)]
    np.testing.assert_array_equal(
        loader.first_batch()["images"],
        draw(
            splits.train,
            order(12, loader.sizes, 0)[0],
            turns=reading.turns_of(order(12, loader.sizes, 0))[0],
        ),
    )


def test_bad_images_cannot_be_left_out_of_what_is_read_later(photos):
    own = DataConfig(dataset="folder", data_dir=str(photos), skip_bad_images=True)
    with pytest.raises(ConfigError, match="skip_bad_images reads all images before"):
        data.load(data.for_training(own, CROP))
    assert isinstance(make(photos, CROP).images, stream.Images)
