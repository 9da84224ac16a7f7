"""Compares augmentation on the host and the device with torchvision."""

import math

import jax
import numpy as np
import pytest
from PIL import Image

from resnet_jax import data, models, training
from resnet_jax.config import AugmentConfig, Config, DataConfig, OptimConfig, RunConfig
from resnet_jax.data import erasing, pillow, transforms
from resnet_jax.data.augment import make_augment, make_preprocess
from resnet_jax.recipes import RECIPES
from resnet_jax.training import step as step_module

pytest.importorskip("torch", reason="parity needs torch")
pytest.importorskip("torchvision", reason="parity needs torchvision")
import torch
from torchvision.transforms import RandomErasing, RandomResizedCrop
from torchvision.transforms import functional as F
from torchvision.transforms.autoaugment import TrivialAugmentWide, _apply_op

pytestmark = pytest.mark.parity
BILINEAR = F.InterpolationMode.BILINEAR


@pytest.fixture
def photo(tmp_path):
    """A JPEG of 150 x 100 pixels with coarse and fine structure."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (5, 8, 3), np.uint8)
    image = Image.fromarray(coarse).resize((150, 100), Image.Resampling.BICUBIC)
    noise = rng.integers(-9, 10, (100, 150, 3))
    pixels = (np.asarray(image).astype(int) + noise).clip(0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.jpg", quality=95)
    return tmp_path / "photo.jpg"


def test_the_operations_are_those_of_trivial_augment():
    space = TrivialAugmentWide()._augmentation_space(31)
    assert list(space) == list(transforms._WIDE)
    drawn = [transforms.draw_operation(np.random.default_rng(n)) for n in range(9000)]
    for name, (magnitudes, is_signed) in space.items():
        ours = {magnitude for other, magnitude in drawn if other == name}
        if name == "Posterize":  # here it is the number of removed bits
            ours = {8 - round(magnitude) for magnitude in ours}
        if name == "Solarize":
            ours = {255 - magnitude for magnitude in ours}
        theirs = {float(value) for value in np.atleast_1d(magnitudes)}
        theirs |= {-value for value in theirs} if is_signed else set()
        assert sorted(ours) == pytest.approx(sorted(theirs), abs=1e-4)


@pytest.mark.parametrize("name", transforms._WIDE)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_an_operation_is_torchvisions(name, mode, photo):
    with Image.open(photo) as file:
        image = file.convert(mode)
    largest, is_signed = transforms._WIDE[name]
    for share in (0.0, 0.1, 0.5, 0.9, 1.0):
        for sign in (1, -1) if is_signed else (1,):
            magnitude = theirs = sign * share * largest
            if name == "Posterize":
                theirs = 8 - round(magnitude)
            if name == "Solarize":
                theirs = 255 - magnitude
            found = transforms.operate(
                image, name, magnitude, Image.Resampling.BILINEAR
            )
            fill = [0.0] * len(mode)
            expected = _apply_op(image, name, theirs, BILINEAR, fill)
            # torchvision converts a shear's tangent to degrees, which rounds it.
            np.testing.assert_allclose(
                np.asarray(found, int),
                np.asarray(expected, int),
                atol=int(name.startswith("Shear")),
            )


@pytest.mark.parametrize("size", [32, 64])
def test_a_region_is_torchvisions(size, photo):
    with Image.open(photo) as file:
        image = file.convert("RGB")
    rng = np.random.default_rng(0)
    for _ in range(50):
        box = transforms.draw_region(rng, *image.size, smallest=0.08)
        found = transforms.resized_crop(image, box, size, Image.Resampling.BILINEAR)
        expected = F.resized_crop(
            image, box.top, box.left, box.height, box.width, [size, size], BILINEAR
        )
        np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


@pytest.mark.parametrize("shape", [(150, 100), (90, 30), (20, 200)])
def test_regions_are_distributed_as_torchvisions(shape):
    """Means agree within 4 standard errors, and extreme cases are equal."""
    width, height = shape
    rng, num = np.random.default_rng(0), 3000
    torch.manual_seed(0)
    image = Image.new("L", shape)
    theirs = np.array(
        [
            RandomResizedCrop.get_params(image, [0.2, 1.0], [3 / 4, 4 / 3])
            for _ in range(num)
        ]
    )
    ours = np.array(
        [transforms.draw_region(rng, width, height, smallest=0.2) for _ in range(num)]
    )[:, [1, 0, 3, 2]]
    spread = np.maximum(theirs.std(0), ours.std(0)) + 1e-9
    error = spread * math.sqrt(2 / num)
    assert (np.abs(theirs.mean(0) - ours.mean(0)) < 4 * error).all()
    np.testing.assert_allclose(ours.min(0), theirs.min(0), atol=3)
    np.testing.assert_allclose(ours.max(0), theirs.max(0), atol=3)


def test_jitter_is_torchvisions(photo):
    with Image.open(photo) as file:
        image = file.convert("RGB")
    adjust = {
        "Brightness": F.adjust_brightness,
        "Contrast": F.adjust_contrast,
        "Color": F.adjust_saturation,
    }
    orders = set()
    for seed in range(30):
        drawn = transforms.draw_jitter(np.random.default_rng(seed), 0.4)
        orders.add(tuple(name for name, _ in drawn))
        assert all(0.6 <= factor <= 1.4 for _, factor in drawn)
        found = expected = image
        for name, factor in drawn:
            found = transforms.enhance(found, name, factor)
            expected = adjust[name](expected, factor)
        np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))
    assert len(orders) == 6


def test_a_transform_is_the_composition_of_its_parts(photo):
    """The order is torchvision's: region, TrivialAugment operation, jitter."""
    cfg = AugmentConfig(
        random_resized_crop=True, auto_augment="ta_wide", color_jitter=0.3
    )
    transform = transforms.Transform(cfg, seed=3, size=48, kept=1.0)
    for epoch in range(12):
        with Image.open(photo) as file:
            found = transform(file, 7, epoch, 0)
        rng = np.random.default_rng([3, epoch, 7, 0])
        with Image.open(photo) as file:
            box = transforms.draw_region(rng, *file.size, smallest=0.08)
            times = min(box.width, box.height) // 48
            if times >= 2:  # decoded at half scale
                file.draft("RGB", (file.width // times, file.height // times))
                assert file.size == (75, 50)
                edges = (box.left, box.top, box.left + box.width, box.top + box.height)
                left, top = (math.floor(edge / 2) for edge in edges[:2])
                right, bottom = (math.ceil(edge / 2) for edge in edges[2:])
                box = transforms.Box(left, top, right - left, bottom - top)
            image = file.convert("RGB")
        sides = (box.top, box.left, box.height, box.width)
        image = F.resized_crop(image, *sides, [48, 48], BILINEAR)
        name, magnitude = transforms.draw_operation(rng)
        image = transforms.operate(image, name, magnitude, Image.Resampling.BILINEAR)
        for name, factor in transforms.draw_jitter(rng, 0.3):
            image = transforms.enhance(image, name, factor)
        np.testing.assert_array_equal(found, np.asarray(image))


def test_decoding_at_a_smaller_scale_is_nearly_the_same(photo):
    with Image.open(photo) as file:
        whole = pillow.decode(file)
    box = transforms.Box(11, 3, 130, 96)
    with Image.open(photo) as file:
        smaller = transforms.reduce(file, box, 40)
        found = transforms.resized_crop(
            pillow.decode(file), smaller, 40, Image.Resampling.BILINEAR
        )
        assert file.size == (75, 50)
    expected = transforms.resized_crop(whole, box, 40, Image.Resampling.BILINEAR)
    apart = np.abs(np.asarray(found, int) - np.asarray(expected, int))
    assert 0 < apart.mean() < 3


def test_erasing_is_torchvisions():
    shape = (24, 32)
    boxes = np.asarray(
        erasing.draw_boxes(jax.random.key(0), 4000, shape, probability=1.0)
    )
    x = np.random.default_rng(0).normal(size=(64, *shape, 3)).astype(np.float32)
    found = np.asarray(erasing.erase(x, boxes[:64]))
    for image, box, ours in zip(x, boxes, found, strict=False):
        theirs = F.erase(torch.tensor(image.transpose(2, 0, 1)), *box.tolist(), v=0.0)
        np.testing.assert_array_equal(ours, theirs.numpy().transpose(1, 2, 0))

    torch.manual_seed(0)
    image = torch.zeros(3, *shape)
    theirs = np.array(
        [
            RandomErasing.get_params(image, (0.02, 0.33), (0.3, 3.3), [0.0])[:4]
            for _ in range(len(boxes))
        ]
    )
    error = theirs.std(0) * math.sqrt(2 / len(boxes))
    assert (np.abs(theirs.mean(0) - boxes.mean(0)) < 4 * error).all()
    np.testing.assert_allclose(boxes.max(0), theirs.max(0), atol=1)
    np.testing.assert_allclose(boxes.min(0), theirs.min(0), atol=1)
    some = erasing.draw_boxes(jax.random.key(1), 4000, shape, probability=0.1)
    assert (np.asarray(some)[:, 2] > 0).mean() == pytest.approx(0.1, abs=0.02)


def test_erasing_leaves_the_mean_color():
    cfg = AugmentConfig(normalize="imagenet", random_erasing=1.0)
    augment = make_augment(cfg, make_preprocess(cfg, (16, 16, 3)), 10)
    images = np.full((8, 16, 16, 3), 255, np.uint8)
    x, _ = augment(jax.random.key(0), images, np.zeros(8, np.int32))
    values = np.unique(np.asarray(x)[..., 0])
    assert (
        len(values) == 2 and values[0] == 0 and (np.asarray(x) == 0).any((1, 2)).all()
    )


def torchvisions_rates(cfg, num_epochs):
    """Returns the learning rate of each epoch in references/classification/train.py."""
    sgd = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=cfg.optim.lr)
    schedulers = torch.optim.lr_scheduler
    warmup = round(cfg.optim.warmup_epochs)
    if cfg.optim.schedule == "cosine":
        main = schedulers.CosineAnnealingLR(sgd, T_max=cfg.run.epochs - warmup)
    else:
        main = schedulers.StepLR(sgd, step_size=30, gamma=0.1)
    if warmup:
        first = schedulers.LinearLR(sgd, start_factor=0.01, total_iters=warmup)
        main = schedulers.SequentialLR(sgd, [first, main], milestones=[warmup])
    rates = []
    for _ in range(num_epochs):
        rates.append(sgd.param_groups[0]["lr"])
        sgd.step()
        main.step()
    return rates


@pytest.mark.parametrize("name", ["imagenet", "imagenet-v2"])
def test_the_schedule_is_torchvisions(name):
    cfg, steps = RECIPES[name][1], 7
    schedule = training.make_schedule(cfg.optim, cfg.run.epochs * steps, steps)
    theirs = torchvisions_rates(cfg, cfg.run.epochs)
    for place in (0, steps - 1):  # first and last step of each epoch
        ours = [float(schedule(e * steps + place)) for e in range(cfg.run.epochs)]
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-8)


def test_the_settings_are_those_that_torchvision_trained_with():
    """From the commands in the README of torchvision's references/classification."""
    first, second = RECIPES["imagenet"][1], RECIPES["imagenet-v2"][1]
    o, d, a = first.optim, first.data, first.augment
    assert (o.optimizer, o.lr, o.momentum, o.weight_decay) == ("sgd", 0.1, 0.9, 1e-4)
    assert (o.norm_weight_decay, d.batch_size, first.run.epochs) == (None, 256, 90)
    assert (d.image_size, d.train_size, round(d.image_size / d.kept)) == (
        224,
        None,
        256,
    )
    assert (a.random_resized_crop, a.flip, a.crop_scale) == (True, "random", 0.08)
    o, d, a = second.optim, second.data, second.augment
    assert (o.optimizer, o.lr, o.momentum, o.weight_decay) == ("sgd", 0.5, 0.9, 2e-5)
    assert (o.norm_weight_decay, d.batch_size, second.run.epochs) == (0.0, 1024, 600)
    assert (o.warmup_epochs, o.warmup_decay) == (5, 0.01)
    assert (o.ema_decay, o.ema_steps) == (0.99998, 32)
    assert (d.image_size, d.train_size, round(d.image_size / d.kept)) == (224, 176, 232)
    assert d.repeated_augmentation == 4
    assert (a.auto_augment, a.random_erasing) == ("ta_wide", 0.1)
    assert (a.mixup, a.cutmix, a.label_smoothing) == (0.2, 1.0, 0.1)


def test_the_decay_spares_the_norms_as_torchvisions():
    """Compares with set_weight_decay(model, 2e-5, norm_weight_decay=0)."""
    cfg = RECIPES["imagenet-v2"][1]
    model = models.create_model("resnet18", num_classes=5)
    variables = training.init_variables(model, (32, 32, 3), key=jax.random.key(0))
    tx = training.make_optimizer(cfg.optim, lambda step: 1.0)
    params = jax.tree.map(lambda x: x + 1.0, variables["params"])
    zeros = jax.tree.map(lambda x: 0 * x, params)
    updates, _ = tx.update(zeros, tx.init(params), params)
    decays = jax.tree.map(lambda u, p: float((-u / p).max()), updates, params)
    flat = jax.tree_util.tree_flatten_with_path(decays)[0]
    for path, decay in flat:
        is_norm = any("bn" in str(key) or "downsample.1" in str(key) for key in path)
        assert decay == pytest.approx(0.0 if is_norm else 2e-5), path


def test_the_average_is_torchvisions():
    """Compares with its references' ExponentialMovingAverage, reset in warm-up."""
    steps, epochs, warmup = 70, 6, 2
    cfg = Config(
        data=DataConfig(batch_size=8),
        optim=OptimConfig(
            ema_decay=0.999, ema_steps=32, warmup_epochs=float(warmup), lr=0.1
        ),
        run=RunConfig(epochs=epochs),
    )
    decay = 1 - min(1.0, (1 - 0.999) * 8 * 32 / epochs)
    module = torch.nn.Linear(1, 1, bias=False)
    theirs = torch.optim.swa_utils.AveragedModel(
        module,
        avg_fn=lambda old, new, num: decay * old + (1 - decay) * new,
    )
    keep = training.make_ema_decay(cfg, steps)
    ours = {"w": np.float32(0)}
    for epoch in range(epochs):
        for i in range(steps):
            value = math.sin(epoch * steps + i) + epoch
            with torch.no_grad():
                module.weight.fill_(value)
            if i % 32 == 0:
                theirs.update_parameters(module)
                if epoch < warmup:
                    theirs.n_averaged.fill_(0)
            step = np.int32(epoch * steps + i)
            new = {"w": np.float32(value)}
            ours = step_module.average(ours, new, step, keep)
            assert float(ours["w"]) == pytest.approx(
                float(theirs.module.weight.detach()), rel=1e-5
            )
    assert 0.9 < decay < 0.99


def test_repeated_augmentation_is_torchvisions_sampler():
    """RASampler in one process: each image four times in a row, as many draws."""
    batches = data.epoch_batches(22, [8, 8, 6], 3, seed=1, repeats=4)
    order = data.epoch_order(22, seed=1, epoch=3)
    expected = [index for index in order for _ in range(4)][:22]
    np.testing.assert_array_equal(np.concatenate(batches), expected)
