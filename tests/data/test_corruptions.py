import io

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from resnet_jax.data import corruptions
from resnet_jax.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt

RANDOM = {"gaussian noise", "shot noise"}


def make_images(num=12, side=32, channels=3):
    """Returns smooth images with edges, like photographs."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(num, side, side, channels))
    smooth = ndimage.gaussian_filter(noise, (0, 2, 2, 0), mode="wrap")
    smooth /= np.abs(smooth).max()
    edges = 0.3 * (smooth > 0.1)
    return np.uint8(255 * (0.35 + 0.3 * smooth + edges))


def damage(images, changed):
    """Returns the mean squared difference."""
    return float(((changed.astype(float) - images) ** 2).mean())


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_damage_grows_with_severity(name, channels):
    images = make_images(channels=channels)
    before = images.copy()
    found = [damage(images, corrupt(name, images, s)) for s in (0, *SEVERITIES)]
    assert found[0] == 0 and found == sorted(set(found))
    np.testing.assert_array_equal(images, before)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("shape", [(3, 32, 32, 3), (2, 28, 28, 1), (2, 9, 14, 3)])
def test_the_form_stays(name, shape):
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    for severity in (0, 1, 5):
        found = corrupt(name, images, severity)
        assert found.shape == shape and found.dtype == np.uint8
    assert corrupt(name, images[:0], 3).shape == (0, *shape[1:])


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_an_image_is_changed_the_same_wherever_it_stands(name, monkeypatch):
    images = make_images()
    whole = corrupt(name, images, 3, seed=7)
    np.testing.assert_array_equal(corrupt(name, images, 3, seed=7), whole)
    part = corrupt(name, images[5:9], 3, seed=7, first=5)
    np.testing.assert_array_equal(part, whole[5:9])
    monkeypatch.setattr(corruptions, "_CHUNK", 5)
    np.testing.assert_array_equal(corrupt(name, images, 3, seed=7), whole)
    other = corrupt(name, images, 3, seed=8)
    assert (damage(whole, other) > 0) == (name in RANDOM)


@pytest.mark.parametrize("name", sorted(RANDOM))
def test_each_image_and_severity_has_noise_of_its_own(name):
    same = np.full((2, 32, 32, 3), 128, np.uint8)
    one, two = corrupt(name, same, 1).astype(float) - 128
    assert abs(np.corrcoef(one.ravel(), two.ravel())[0, 1]) < 0.1
    more = corrupt(name, same, 5).astype(float)[0] - 128
    assert abs(np.corrcoef(one.ravel(), more.ravel())[0, 1]) < 0.1


def test_noise_has_the_published_spread():
    gray = np.full((8, 32, 32, 3), 128, np.uint8)
    spread = [corrupt("gaussian noise", gray, s).std() / 255 for s in SEVERITIES]
    np.testing.assert_allclose(spread, [0.04, 0.06, 0.08, 0.09, 0.10], rtol=0.03)
    # A Poisson variable divided by n has variance mean / n.
    spread = [corrupt("shot noise", gray, s).std() / 255 for s in SEVERITIES]
    photons = np.array([500, 250, 100, 75, 50])
    np.testing.assert_allclose(spread, np.sqrt(128 / 255 / photons), rtol=0.03)


def test_blur_goes_with_the_side():
    """The slope of a blurred edge is a Gaussian, which is wider in larger images."""
    for side in (32, 64):
        edge = np.zeros((1, side, side, 1), np.uint8)
        edge[:, :, side // 2 :] = 255
        slope = np.diff(corrupt("gaussian blur", edge, 5)[0, 0, :, 0].astype(float))
        places = np.arange(1, side) - side // 2
        variance = (slope * places**2).sum() / slope.sum()
        assert np.sqrt(variance) == pytest.approx(side / 32, rel=0.05)


def test_contrast_keeps_the_mean_and_takes_the_rest():
    images = make_images().astype(float)
    for severity, share in zip(SEVERITIES, (0.75, 0.5, 0.4, 0.3, 0.15), strict=True):
        found = corrupt("contrast", images.astype(np.uint8), severity).astype(float)
        mean = images.mean((1, 2), keepdims=True)
        np.testing.assert_allclose(found, mean + share * (images - mean), atol=0.51)


def test_brightness_is_the_value_of_hsv():
    import colorsys

    pixels = np.array([[0, 0, 0], [10, 40, 20], [250, 100, 0], [90, 90, 90]], np.uint8)
    found = corrupt("brightness", pixels.reshape(1, 2, 2, 3), 3).reshape(4, 3)
    for pixel, changed in zip(pixels / 255, found, strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
        expected = colorsys.hsv_to_rgb(hue, saturation, min(value + 0.15, 1))
        np.testing.assert_allclose(changed, 255 * np.array(expected), atol=0.51)


def test_jpeg_has_the_published_quality():
    images = make_images(1)
    buffer = io.BytesIO()
    Image.fromarray(images[0]).save(buffer, "JPEG", quality=50)
    expected = np.asarray(Image.open(buffer))
    np.testing.assert_array_equal(corrupt("jpeg compression", images, 4)[0], expected)


def test_pixelate_repeats_means_of_boxes():
    images = make_images(2)
    found = corrupt("pixelate", images, 4)[1]  # 24 pixels
    small = Image.fromarray(images[1]).resize((24, 24), Image.Resampling.BOX)
    expected = np.asarray(small.resize((32, 32), Image.Resampling.BOX))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("severity", [-1, 6])
def test_there_are_five_severities(severity):
    with pytest.raises(ValueError, match=f"must be from 0 to 5, not {severity}"):
        corrupt("contrast", make_images(1), severity)


@pytest.mark.parametrize(
    "images", [np.zeros((1, 8, 8, 3)), np.zeros((8, 8, 3), np.uint8)]
)
def test_other_arrays_are_refused(images):
    with pytest.raises(ValueError, match=r"must be uint8 \[N, H, W, 1 or 3\], not "):
        corrupt("contrast", images, 1)
