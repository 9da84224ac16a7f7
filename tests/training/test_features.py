import json

import jax
import numpy as np
import pytest
from configs import make_config
from parts import init_variables, make_loader, make_preprocess

from resnet_jax import data, models
from resnet_jax.commands import train
from resnet_jax.data import sources
from resnet_jax.run import directory
from resnet_jax.training import features


@pytest.fixture
def parts(monkeypatch):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (46, 8, 8, 3), np.uint8)
    whole = data.Dataset(images, (np.arange(46) % 3).astype(np.int32), tuple("abc"))
    found = whole.take(slice(36)), whole.take(slice(36, None))
    source = sources.Source((8, 8, 3), lambda cfg: (3, lambda: found))
    monkeypatch.setitem(sources.SOURCES, "digits", source)
    return found


@pytest.mark.parametrize(
    "name, dtype",
    [
        ("tiny", "float32"),
        pytest.param("tiny", "bfloat16", marks=pytest.mark.process),
        pytest.param("resnet9", "float32", marks=pytest.mark.process),
    ],
)
def test_the_head_on_the_features_gives_the_networks_logits(tiny, parts, name, dtype):
    options = {"width": 1} if name == "resnet9" else {}
    model = models.create_model(name, num_classes=3, dtype=dtype, **options)
    variables = init_variables(model, (8, 8, 3), key=jax.random.key(0))
    preprocess = make_preprocess((8, 8, 3))
    loader = make_loader(parts[1], eval_batch_size=4)
    cached = features.compute(model, preprocess, variables, loader, parts[1])
    assert cached.images.shape == (10, 8) and cached.images.dtype == np.float32
    expected = model.apply(variables, preprocess(parts[1].images), train=False)
    found = features.head_of(model).apply(variables, cached.images, train=False)
    tolerance = 1e-5 if dtype == "float32" else 2e-2
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def test_nothing_has_no_features(tiny, parts):
    model = models.create_model(tiny, num_classes=3)
    variables = init_variables(model, (8, 8, 3), key=jax.random.key(0))
    preprocess, empty = make_preprocess((8, 8, 3)), parts[1].take(slice(0))
    loader = make_loader(parts[1], eval_batch_size=4)
    assert len(features.compute(model, preprocess, variables, loader, empty)) == 0


@pytest.mark.process
def test_training_on_cached_features_is_the_long_way(one_block, parts, tmp_path):
    """A run with cached features cannot resume without them, or vice versa."""
    runs = []
    for cached in (False, True):
        cfg = make_config(
            model=one_block,
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
        for line in others:  # only the first pays for it
            assert line["startup_seconds"] == line["compile_seconds"] == 0
    for long, short in zip(*runs, strict=True):
        assert long["step"] == short["step"]
        for name in ("train", "val", "test"):
            assert long[f"{name}_accuracy"] == short[f"{name}_accuracy"]
            assert long[f"{name}_loss"] == pytest.approx(
                short[f"{name}_loss"], rel=1e-5
            )
    assert directory.read_run(tmp_path / "True").transfer.cache_features
