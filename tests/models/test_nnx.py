"""Runs the code in docs/nnx.md and checks its statements."""

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import errors, nnx

from resnet_jax import BasicBlock, BatchNorm, ResNet, to_torch

pytestmark = pytest.mark.process  # slow: NNX runs most of it op by op

PAGE = Path(__file__).parents[2] / "docs" / "nnx.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.M | re.S)
TRAINING: dict[str, Any] = {"train": True, "mutable": ["batch_stats"]}


@pytest.fixture(scope="module")
def images() -> jax.Array:
    return jax.random.normal(jax.random.key(1), (4, 8, 8, 3))


@pytest.fixture
def make(images):
    def make(rngs: nnx.Rngs | None = None, **options: Any) -> nnx.bridge.ToNNX:
        options = {"stage_sizes": (1,), "widths": (4,), "num_classes": 10, **options}
        network = ResNet(block=BasicBlock, stem="cifar", **options)
        model = nnx.bridge.ToNNX(network, rngs=rngs or nnx.Rngs(0))
        return model.lazy_init(images, train=False)

    return make


def test_the_page_does_what_it_says():
    assert len(BLOCKS) == PAGE.read_text("utf-8").count("```python") > 5
    namespace: dict[str, Any] = {}
    for number, block in enumerate(BLOCKS):
        exec(compile(block, f"{PAGE.name}, block {number}", "exec"), namespace)


def test_every_call_says_train_and_training_says_mutable(make, images):
    model = make()
    model.eval()
    with pytest.raises(TypeError, match="train"):
        model(images)
    with pytest.raises(errors.ModifyScopeVariableError):
        model(images, train=True)


def test_initialization_moves_no_statistics_even_in_training(images):
    network = ResNet(block=BasicBlock, stage_sizes=(1,), widths=(4,), num_classes=10)
    model = nnx.bridge.ToNNX(network, rngs=nnx.Rngs(0))
    model.lazy_init(images, **TRAINING)
    assert not model.bn1["mean"][...].any()


def test_update_checks_neither_shapes_nor_names(make):
    model, other = make(), make(num_classes=3)
    nnx.update(model, nnx.to_pure_dict(nnx.state(other, nnx.Param)))
    assert model.fc["kernel"].shape == (4, 3)
    nnx.update(model, {"nobody": {"kernel": jnp.zeros(1)}})
    assert hasattr(model, "nobody")


def test_split_merge_clone_and_eval_shape(make, images):
    model = make()
    expected = model(images, train=False)
    for other in (nnx.merge(*nnx.split(model, nnx.Param, ...)), nnx.clone(model)):
        assert jnp.array_equal(other(images, train=False), expected)
    assert nnx.eval_shape(make).fc["kernel"].shape == (4, 10)


def test_gradients_are_the_linen_models_with_remat_too(make, images):
    def loss(model: nnx.bridge.ToNNX) -> jax.Array:
        return jnp.square(model(images, **TRAINING)).sum()

    model = make()
    kinds = {"params": nnx.Param, "batch_stats": nnx.BatchStat}
    params, stats = (nnx.to_pure_dict(nnx.state(model, k)) for k in kinds.values())

    def linen(params: Any) -> jax.Array:
        variables = {"params": params, "batch_stats": stats}
        return jnp.square(
            model.to_nnx__module.apply(variables, images, **TRAINING)[0]
        ).sum()

    expected = to_torch({"params": jax.grad(linen)(params)})
    found = [nnx.grad(loss)(model), nnx.grad(nnx.remat(loss))(make())]
    for grads in (*found, nnx.grad(loss)(make(remat=True))):
        ours = to_torch({"params": nnx.to_pure_dict(grads)})
        for name, grad in expected.items():
            np.testing.assert_allclose(ours[name], grad, rtol=1e-4, atol=1e-4)


def test_scan_over_steps_and_vmap_in_evaluation(make, images):
    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0))
    def steps(model, images):
        return model, model(images, **TRAINING)

    model, single = make(), make()
    model, logits = steps(model, jnp.stack([images, images]))
    for _ in range(2):
        single(images, **TRAINING)
    assert logits.shape == (2, 4, 10)
    found, expected = model.bn1["mean"][...], single.bn1["mean"][...]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)

    @nnx.vmap(in_axes=(None, 0))
    def each(model, image):
        return model(image[None], train=False)[0]

    expected = model(images, train=False)
    np.testing.assert_allclose(each(model, images), expected, rtol=1e-5, atol=1e-5)


def test_an_ensemble_by_vmap(make, images):
    @nnx.split_rngs(splits=2)
    @nnx.vmap
    def ensemble(rngs):
        return make(rngs)

    models = ensemble(nnx.Rngs(0))
    logits = nnx.vmap(lambda model: model(images, train=False))(models)
    assert logits.shape == (2, 4, 10) and not jnp.allclose(logits[0], logits[1])


def test_in_another_module(make, images):
    class Net(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.body = make(rngs, num_classes=0)
            self.head = nnx.Linear(4, 5, rngs=rngs)

        def __call__(self, images: jax.Array) -> jax.Array:
            return self.head(self.body(images, **TRAINING))

    net = Net(nnx.Rngs(0))
    grads = nnx.grad(lambda net: net(images).sum())(net)
    assert set(grads) == {"body", "head"}
    assert net.body.bn1["mean"][...].any()


def test_it_is_one_module(make):
    model = make()
    assert [path for path, _ in nnx.iter_modules(model)] == [()]


def test_jax_jit_around_a_model_needs_a_key(make, images):
    model = make()
    with pytest.raises(errors.TraceContextError):
        jax.jit(lambda images: model(images, train=False))(images)
    options = {"train": False, "rngs": jax.random.key(0)}
    logits = jax.jit(lambda images: model(images, **options))(images)
    np.testing.assert_allclose(logits, model(images, train=False), atol=1e-5)


def test_neither_vmap_nor_cached_partial_in_training(make, images):
    model = make()
    each = nnx.vmap(lambda m, x: m(x, **TRAINING), in_axes=(None, 0))
    with pytest.raises(ValueError, match="batched"):
        each(model, images[None])
    step = nnx.cached_partial(nnx.jit(lambda m, x: m(x, **TRAINING)), make())
    with pytest.raises(ValueError, match="cached_partial"):
        step(images)


def test_intermediates_add_up_until_they_are_taken(make, images):
    model = make()
    for count in (1, 2):
        model(images, train=False, mutable=["intermediates"])
        assert len(model.stem.get_value()) == count
    nnx.pop(model, nnx.Intermediate)
    assert not nnx.state(model, nnx.Intermediate)


def test_batchnorm_of_nnx_evaluates_alike_and_trains_otherwise(images):
    ours = nnx.bridge.ToNNX(BatchNorm(), rngs=nnx.Rngs(0))
    ours.lazy_init(images, train=False)
    theirs = nnx.BatchNorm(3, momentum=0.9, epsilon=1e-5, rngs=nnx.Rngs(0))
    expected = theirs(images, use_running_average=True)
    np.testing.assert_allclose(ours(images, train=False), expected, atol=1e-6)
    ours(images, **TRAINING)
    theirs(images, use_running_average=False)
    np.testing.assert_allclose(theirs.mean[...], ours.mean[...], atol=1e-6)
    var = images.var((0, 1, 2))
    np.testing.assert_allclose(theirs.var[...], 0.9 + 0.1 * var, rtol=1e-6)
    unbiased = var * 256 / 255
    np.testing.assert_allclose(ours.var[...], 0.9 + 0.1 * unbiased, rtol=1e-6)
    assert not np.allclose(theirs.var[...], ours.var[...], rtol=1e-5)
