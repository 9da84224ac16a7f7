import pytest

from resnet_jax import data, load_dataset
from resnet_jax.config import AugmentConfig, DataConfig
from resnet_jax.errors import ConfigError

CROP = AugmentConfig(random_resized_crop=True)


@pytest.mark.parametrize(
    ("name", "value"),
    [("resize", 64), ("crop_pct", 0.5), ("interpolation", "bicubic")],
)
def test_options_of_resizing_are_refused_for_images_of_one_size(name, value):
    given = {name: value}
    flag = f"--{name.replace('_', '-')} is for images of different sizes"
    for dataset in ("cifar10", "digits"):
        with pytest.raises(ConfigError, match=flag):
            data.for_training(DataConfig(dataset=dataset, **given), AugmentConfig())
    with pytest.raises(ConfigError, match=flag):
        load_dataset("digits", **given)
    cfg = DataConfig(dataset="folder", image_size=32, **given)
    assert data.for_training(cfg, AugmentConfig()) == cfg


def test_the_interpolation_counts_where_the_host_resizes():
    cfg = DataConfig(dataset="digits", interpolation="bicubic")
    assert data.for_training(cfg, CROP) == cfg


def test_a_data_set_that_is_none_is_left_to_describe():
    cfg = DataConfig(dataset="mnist", crop_pct=0.5)
    with pytest.raises(ConfigError, match="unknown data set 'mnist'"):
        data.describe(data.for_training(cfg, AugmentConfig()))
