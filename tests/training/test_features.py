import json

import jax
import numpy as np
import pytest

import train
from resnet_jax import data, models, training
from resnet_jax.config import Config
from resnet_jax.data import augment
from resnet_jax.run import config_json
from resnet_jax.training import features


@pytest.fixture
def parts(monkeypatch):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (46, 8, 8, 3), np.uint8)
    whole = data.Dataset(images, (np.arange(46) % 3).astype(np.int32), tuple("abc"))
    found = whole.take(slice(36)), whole.take(slice(36, None))
    monkeypatch.setattr(data, "load_dataset", lambda *args, **options: found)
    description = data.Description(3, (8, 8, 3))
    monkeypatch.setattr(data, "describe", lambda *args, **options: description)
    return found


@pytest.mark.parametrize(
    "name, dtype", [("tiny", "float32"), ("tiny", "bfloat16"), ("resnet9", "float32")]
)
def test_the_head_on_the_features_gives_the_networks_logits(tiny, parts, name, dtype):
    options = {"width": 1} if name == "resnet9" else {}
    model = models.create_model(name, num_classes=3, dtype=dtype, **options)
    variables = training.init_variables(model, (8, 8, 3), key=jax.random.key(0))
    prepare = augment.make_augment(num_classes=3, normalization="half")
    cached = features.compute(model, prepare, variables, parts[1], batch_size=4)
    assert cached.images.shape == (10, 8) and cached.images.dtype == np.float32
    images, _ = prepare(jax.random.key(0), parts[1].images, parts[1].labels)
    expected = model.apply(variables, images, train=False)
    found = features.head_of(model).apply(variables, cached.images, train=False)
    tolerance = 1e-5 if dtype == "float32" else 2e-2
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def test_nothing_has_no_features(tiny, parts):
    model = models.create_model(tiny, num_classes=3)
    variables = training.init_variables(model, (8, 8, 3), key=jax.random.key(0))
    prepare = augment.make_augment(num_classes=3, normalization="half")
    empty = parts[1].take(slice(0))
    assert len(features.compute(model, prepare, variables, empty, batch_size=4)) == 0


def test_training_on_cached_features_is_the_long_way(tiny, parts, tmp_path):
    """And a run may be stopped in the one way and go on in no other."""
    runs = []
    for cached in (False, True):
        cfg = Config(
            model=tiny,
            dataset="digits",
            epochs=3,
            batch_size=8,
            eval_batch_size=4,
            lr=0.01,
            validation_split=0.25,
            freeze="backbone",
            backbone_bn="frozen",
            cache_features=cached,
            label_smoothing=0.1,
            workdir=str(tmp_path / str(cached)),
        )
        train.main(cfg)
        path = tmp_path / str(cached) / "metrics.jsonl"
        runs.append([json.loads(line) for line in path.read_text().splitlines()])
    for first, *others in runs:
        assert first["startup_seconds"] > first["compile_seconds"] > 0
        for line in others:  # nothing of it is theirs
            assert line["startup_seconds"] == line["compile_seconds"] == 0
    for long, short in zip(*runs, strict=True):
        assert long["step"] == short["step"]
        for name in ("train", "val", "test"):
            assert long[f"{name}_accuracy"] == short[f"{name}_accuracy"]
            assert long[f"{name}_loss"] == pytest.approx(
                short[f"{name}_loss"], rel=1e-5
            )
    assert config_json.read_config(tmp_path / "True" / "config.json").cache_features
