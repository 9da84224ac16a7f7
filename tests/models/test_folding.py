import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiers import by_tier

from resnet_jax import models
from resnet_jax.models import BasicBlock, Bottleneck, HResNet, PreActBlock, ResNet
from resnet_jax.models.folding import fold

SMALL = {"stage_sizes": (1, 1), "widths": (4, 6), "stem": "cifar", "num_classes": 5}


def with_random_values(model, dtype):
    """Returns random variables of `model`, and images."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((2, 16, 16, 3)).astype(dtype)
    drawn = model.init(jax.random.key(0), images, train=False)
    factors = {"var": 1.0, "scale": 1.0}

    def draw(path, old):
        base = factors.get(path[-1].key, old)
        return jnp.asarray(base + 0.3 * rng.uniform(size=old.shape), old.dtype)

    return jax.tree_util.tree_map_with_path(draw, drawn), images


NETWORKS = {
    "basic_conv_bn": ResNet(block=BasicBlock, **SMALL),
    "basic_pad": ResNet(block=BasicBlock, shortcut="pad", **SMALL),
    "basic_conv": ResNet(block=BasicBlock, shortcut="conv", **SMALL),
    "plain": ResNet(block=BasicBlock, shortcut="none", **SMALL),
    "epsilon": ResNet(block=BasicBlock, bn_eps=0.3, **SMALL),
    "biases": ResNet(block=BasicBlock, use_bias=True, **SMALL),
    "bottleneck": ResNet(block=Bottleneck, **SMALL | {"stem": "imagenet"}),
    "features": ResNet(block=Bottleneck, **SMALL | {"num_classes": 0}),
    "hresnet": HResNet(num_classes=5),
}


@pytest.mark.parametrize(
    "name", by_tier(NETWORKS, ["hresnet", "bottleneck", "features"])
)
@pytest.mark.parametrize(("dtype", "bound"), [("float64", 1e-10), ("float32", 1e-4)])
def test_a_folded_network_gives_the_same_logits(name, dtype, bound):
    model = NETWORKS[name].clone(dtype=jnp.dtype(dtype))
    with jax.enable_x64(dtype == "float64"):
        variables, images = with_random_values(model, dtype)
        folded, params = fold(model, variables)
        assert folded.norm == "none" and "batch_stats" not in params
        expected = np.asarray(model.apply(variables, images, train=False))
        logits = np.asarray(folded.apply(params, images, train=False))
        assert logits.dtype == expected.dtype == jnp.dtype(dtype)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(logits / scale, expected / scale, atol=bound, rtol=0)


@pytest.mark.parametrize(
    "model",
    [
        ResNet(block=PreActBlock, shortcut="conv", **SMALL),
        ResNet(block=BasicBlock, norm="none", **SMALL),
        ResNet(block=BasicBlock, dtype=jnp.dtype("bfloat16"), **SMALL),
        models.create_model("resnet9", num_classes=5),
    ],
    ids=["preact", "no_norm", "bfloat16", "resnet9"],
)
def test_a_network_that_cannot_be_folded_stays(model):
    variables = {"params": {}, "batch_stats": {}}
    assert fold(model, variables) == (model, variables)
