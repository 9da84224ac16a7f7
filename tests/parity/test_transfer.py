"""Compares freezing with requires_grad=False, and transforms with torchvision's."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parts import make_optimizer, make_preprocess
from PIL import Image

from resnet_jax import models, training
from resnet_jax.data import augment, folder
from resnet_jax.training import freezing
from resnet_jax.weights import convert

pytest.importorskip("torchvision", reason="parity needs torch and torchvision")
import torch
import torchvision
import twins
from torchvision.transforms.v2 import functional as T

pytestmark = [pytest.mark.optimized, pytest.mark.parity]


@pytest.mark.parametrize("backbone_bn", ["update", "frozen"])
def test_a_frozen_backbone_does_what_pytorchs_does(backbone_bn):
    with jax.enable_x64(True):
        twin, make = twins.make_pair("resnet8")
        twin = twin.double().train()
        for name, parameter in twin.named_parameters():
            parameter.requires_grad = name.startswith("fc.")
        if backbone_bn == "frozen":
            for module in twin.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.eval()
        optimizer = torch.optim.Adam(twin.fc.parameters(), lr=1e-2, weight_decay=0.1)
        model = make(jnp.float64)
        variables = twins.variables_of(twin, model, 16)
        trainable = freezing.make_trainable("backbone", model, (16, 16, 3))
        tx = make_optimizer(
            optimizer="adam", lr=1e-2, weight_decay=0.1, trainable=trainable
        )
        state = training.TrainState(
            jnp.zeros((), jnp.int32),
            variables["params"],
            variables["batch_stats"],
            tx.init(variables["params"]),
        )

        def as_they_are(key, images, labels, step):
            return images, jax.nn.one_hot(labels, 10, dtype=images.dtype)

        step = jax.jit(
            training.make_train_step(
                model, tx, as_they_are, trainable, backbone_bn=backbone_bn
            )
        )
        rng = np.random.default_rng(0)
        before = twins.state_dict_of(twin)
        for _ in range(5):
            images = rng.normal(size=(6, 16, 16, 3))
            labels = rng.integers(0, 10, 6).astype(np.int32)
            batch = {"images": images, "labels": labels}
            state, _ = step(state, batch, jax.random.key(0))
            optimizer.zero_grad()
            logits = twin(twins.nchw(images, torch.float64))
            torch.nn.functional.cross_entropy(
                logits, torch.tensor(labels).long()
            ).backward()
            optimizer.step()
        expected, found = (
            twins.state_dict_of(twin),
            convert.to_torch(state.variables),
        )
        for name, value in expected.items():
            if "tracked" not in name:
                np.testing.assert_allclose(
                    found[name], value, rtol=1e-10, atol=1e-12, err_msg=name
                )
        moved = (expected["bn1.running_mean"] != before["bn1.running_mean"]).any()
        assert moved == (backbone_bn == "update")


@pytest.mark.parametrize("size", [224, 48, 20])
def test_resize_is_torchvisions(size):
    images = np.random.default_rng(0).uniform(size=(3, 32, 32, 3)).astype(np.float32)
    found = augment.resize(jnp.asarray(images), (size, size))
    expected = T.resize(twins.nchw(images, torch.float32), [size, size], antialias=True)
    expected = expected.numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_images_are_normalized_as_by_totensor_and_normalize():
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    found = make_preprocess((32, 32, 3), normalize="imagenet")(images)
    x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).float() / 255
    expected = T.normalize(x, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    expected = expected.numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_folder_is_torchvisions_imagefolder(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("b", "a", "C", "a/deep"):
        directory = tmp_path / "train" / name
        directory.mkdir(parents=True, exist_ok=True)
        for index, suffix in enumerate((".png", ".jpg", ".PNG")):
            shape = (*rng.integers(40, 90, 2), 3)
            image = Image.fromarray(rng.integers(0, 256, shape, np.uint8))
            image.save(directory / f"{index}{suffix}")
    transforms = torchvision.transforms
    theirs = torchvision.datasets.ImageFolder(
        tmp_path / "train",
        transforms.Compose([transforms.Resize(32), transforms.CenterCrop(28)]),
    )
    shutil.copytree(tmp_path / "train", tmp_path / "test")  # a folder has both
    listing = folder.scan(tmp_path)
    images, labels = folder.load(listing.splits[0], size=28, crop_pct=0.875)
    assert listing.class_names == tuple(theirs.classes)
    assert labels.tolist() == theirs.targets
    for image, (expected, _) in zip(images, theirs, strict=True):
        np.testing.assert_array_equal(image, np.asarray(expected))


def test_the_initial_values_are_drawn_as_pytorch_draws_them():
    """Mean and standard deviation of every layer agree within the sampling error."""
    for name in ("hresnet", "resnet18", "resnet50"):
        torch.manual_seed(0)
        twin = twins.create_twin(name)
        model = models.create_model(name, num_classes=10)
        variables = training.init_variables(model, (32, 32, 3), key=jax.random.key(0))
        found = convert.to_torch(variables)
        for key, value in twins.state_dict_of(twin).items():
            if "tracked" in key:
                continue
            if value.std() == 0 or value.size == 1:  # BatchNorm's constants
                np.testing.assert_array_equal(found[key], value)
                continue
            error = value.std() * (2 / value.size) ** 0.5
            assert abs(found[key].mean() - value.mean()) < 5 * error, (name, key)
            assert abs(found[key].std() - value.std()) < 5 * error, (name, key)
