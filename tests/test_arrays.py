"""Layers accept NumPy and JAX arrays, and reject others with a message."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parts import make_augment, make_preprocess
from PIL import Image
from tiers import by_tier

import resnet_jax
from resnet_jax import data, layers, models, training
from resnet_jax.data import augment, erasing
from resnet_jax.errors import ConfigError
from resnet_jax.layers.conv import Conv
from resnet_jax.layers.linear import Linear
from resnet_jax.report import grad_cam
from resnet_jax.training import metrics
from resnet_jax.weights import Preprocessing

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 8, 8, 3)).astype(np.float32)
UINT8 = RNG.integers(0, 256, (2, 8, 8, 3), np.uint8)
LABELS = np.array([1, 0], np.int32)
TARGETS = np.eye(3, dtype=np.float32)[LABELS]
KERNEL = RNG.normal(size=(3, 3, 3, 4)).astype(np.float32)
KEY = jax.random.key(0)
MASK = np.ones(2, np.float32)


def module(layer, x, **options):
    """Returns the output of `layer` for x, called with `options`."""
    variables = layer.init(KEY, x, **options)
    return layer.apply(variables, x, **options, mutable=["batch_stats"])


def make_network():
    return models.ResNet(
        num_classes=3, block=models.BasicBlock, stage_sizes=(1,), widths=(4,),
        stem="cifar",
    )  # fmt: skip


def network(x):
    return module(make_network(), x, train=True)


def cam(images, classes):
    model = make_network()
    variables = jax.jit(lambda: model.init(KEY, X, train=False))()
    return grad_cam(model, variables, images, classes)


FUNCTIONS = {
    "BatchNorm": (lambda x: module(layers.BatchNorm(), x, train=True), X),
    "Conv": (lambda x: module(Conv(4, 3, padding=1), x), X),
    "Linear": (lambda x: module(Linear(4), x), X[:, 0, 0]),
    "ResNet": (network, X),
    "ResNet9": (
        lambda x: module(models.ResNet9(num_classes=3, width=2), x, train=True),
        X,
    ),
    "HResNet": (lambda x: module(models.HResNet(num_classes=3), x, train=False), X),
    "BasicBlock": (lambda x: module(models.BasicBlock(4), x, train=True), X),
    "Bottleneck": (lambda x: module(models.Bottleneck(2), x, train=True), X),
    "PreActBlock": (lambda x: module(models.PreActBlock(4), x, train=True), X),
    "make_augment": (
        lambda x, y: make_augment((8, 8, 3), 3, crop_padding=1, cutmix=0.5)(KEY, x, y),
        *(UINT8, LABELS),
    ),
    "make_preprocess": (make_preprocess((8, 8, 3)), UINT8),
    "from_torch": (
        lambda w: resnet_jax.from_torch(
            {"c.weight": w}, {"params": {"c": {"kernel": KERNEL}}}
        ),
        KERNEL.transpose(3, 2, 0, 1),
    ),
    "convolve": (lambda x, k: layers.convolve(x, k, stride=1, padding=1), X, KERNEL),
    "avg_pool": (layers.avg_pool, X),
    "max_pool": (layers.max_pool, X),
    "max_pool_2x2": (layers.max_pool_2x2, X),
    "grad_cam": (cam, X, LABELS),
    "normalize": (lambda x: augment.normalize(x, mean=0.5, std=0.25), UINT8),
    "resize": (lambda x: augment.resize(x, (4, 4)), X),
    "random_crop": (lambda x: augment.random_crop(KEY, x, 2), UINT8),
    "random_flip": (lambda x: augment.random_flip(KEY, x), UINT8),
    "alternating_flip": (augment.alternating_flip, UINT8, np.array(3)),
    "cutout": (lambda x: erasing.cutout(KEY, x, 3), X),
    "make_targets": (lambda y: augment.make_targets(y, 3, 0.1), LABELS),
    "mixup": (lambda x, y: augment.mixup(KEY, x, y, 0.5), X, TARGETS),
    "cutmix": (lambda x, y: augment.cutmix(KEY, KEY, x, y, 0.5), X, TARGETS),
    "mix": (lambda x, y: augment.mix(KEY, x, y, 0.5, 0.5), X, TARGETS),
    "eval_sums": (metrics.eval_sums, X[:, 0, 0], LABELS, MASK),
    "train_sums": (metrics.train_sums, np.float32(1), X[:, 0, 0], LABELS),
    "preprocessing": (Preprocessing(8, 8, (0.5,) * 3, (0.25,) * 3), UINT8),
    "flips_and_shifts": (training.flips_and_shifts, X),
    "to_torch": (
        lambda k: resnet_jax.to_torch({"params": {"c": {"kernel": k}}}),
        KERNEL,
    ),
    "digest": (lambda x: data.digest(data.Dataset(x, LABELS, ("a",))), UINT8),
}


@pytest.mark.parametrize(
    "name", by_tier(FUNCTIONS, ["HResNet", "ResNet9", "make_augment"])
)
def test_numpy_and_jax_are_taken_alike(name):
    function, *args = FUNCTIONS[name]
    by_numpy = function(*args)
    by_jax = function(*map(jnp.asarray, args)) if name != "digest" else by_numpy
    jax.tree.map(np.testing.assert_array_equal, by_numpy, by_jax)


def test_lists_of_any_images_are_preprocessed(tmp_path):
    preprocessing = Preprocessing(8, 8, (0.5,) * 3, (0.25,) * 3)
    expected = (UINT8 / np.float32(255) - 0.5) / 0.25
    paths = [tmp_path / f"{index}.png" for index in (0, 1)]
    for path, image in zip(paths, UINT8, strict=True):
        Image.fromarray(image).save(path)
    opened = [Image.fromarray(image) for image in UINT8]
    for images in (UINT8, list(UINT8), opened, paths, [str(path) for path in paths]):
        np.testing.assert_allclose(preprocessing(images), expected, atol=1e-6)


def test_of_larger_images_the_middle_is_preprocessed():
    preprocessing = Preprocessing(8, 6, (0.5,), (0.25,))
    wide = np.zeros((8, 30, 1), np.uint8)
    wide[:, 12:18] = 255
    found = preprocessing([wide, wide[:, 5:25]])
    np.testing.assert_allclose(found, np.full((2, 6, 6, 1), 2.0), atol=1e-6)


@pytest.mark.parametrize("images", [X, UINT8[0], UINT8.transpose(0, 3, 1, 2), [X[0]]])
def test_other_arrays_are_not_preprocessed(images):
    with pytest.raises(ValueError, match=r"uint8 .*, got (float32|uint8) \["):
        Preprocessing(8, 8, (0.5,) * 3, (0.25,) * 3)(images)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (UINT8, "normalized images, not raw uint8: call preprocessing"),
        (X.transpose(0, 3, 1, 2), r"got \[2, 3, 8, 8\]: channels come last, unlike"),
        (X[0], r"got \[8, 8, 3\]: add a batch axis to a single image: x\[None\]"),
        (X[..., :2], r"got \[2, 8, 8, 2\]: create it with in_channels=2"),
        (X[:, 0, 0], r"got \[2, 3\]: put the 3 channels last"),
    ],
)
def test_what_a_network_cannot_take_is_named(images, message):
    with pytest.raises(ConfigError, match=message):
        network(images)


def test_layers_name_the_form_that_they_take():
    conv, linear = Conv(4, 3), Linear(4)
    with pytest.raises(ConfigError, match=r"^Conv expects images \[B, H, W, 3\], got"):
        conv.apply(conv.init(KEY, X), X[..., :2])
    with pytest.raises(ConfigError, match=r"^Linear expects features \[.{3}, 3\], "):
        linear.apply(linear.init(KEY, X[:, 0, 0]), X[:, 0, 0, :2])


def test_a_bare_batch_norm_names_itself():
    one = np.ones((1, 1, 1, 3), np.float32)
    layer = layers.BatchNorm()
    variables = layer.init(KEY, one, train=True)
    with pytest.raises(ConfigError, match="^BatchNorm cannot train on one value"):
        layer.apply(variables, one, train=True, mutable=["batch_stats"])


@pytest.mark.parametrize("option", ["in_chans", "pretrained", "drop_rate"])
def test_what_users_of_timm_ask_for_gets_an_answer(option):
    with pytest.raises(ConfigError, match=f"resnet18 has no option {option}: "):
        resnet_jax.create_model("resnet18", num_classes=10, **{option: 0.5})


@pytest.mark.parametrize("text", ["127.5/127.5", "123.7,116.3,103.5/58.4,57.1,57.4"])
def test_a_normalization_of_bytes_is_refused(text):
    with pytest.raises(ConfigError, match="from 0 to 255, .* divide its numbers by"):
        augment.parse_normalization(text)


def test_flax_itself_says_which_collection_must_be_mutable():
    layer = layers.BatchNorm()
    with pytest.raises(flax.errors.ModifyScopeVariableError, match="batch_stats"):
        layer.apply(layer.init(KEY, X, train=True), X, train=True)


@pytest.mark.parametrize("shape", [(4,), (2, 4), (2, 3, 4)])
def test_a_linear_layer_takes_any_leading_axes(shape):
    layer, x = Linear(5), np.ones(shape, np.float32)
    variables = layer.init(KEY, x)
    kernel, bias = (variables["params"][name] for name in ("kernel", "bias"))
    expected = x @ np.asarray(kernel) + np.asarray(bias)
    np.testing.assert_allclose(layer.apply(variables, x), expected, rtol=1e-6)


def test_pixels_of_32_bits_in_memory_are_refused():
    image = Image.fromarray(np.full((8, 8), 128, np.int32))
    with pytest.raises(ValueError, match="32-bit pixels have no known range"):
        Preprocessing(8, 8, (0.5,), (0.25,))([image])
