from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from parts import init_variables
from tiers import by_tier

import resnet_jax
from resnet_jax import training
from resnet_jax.config import ModelConfig
from resnet_jax.errors import ConfigError
from resnet_jax.models import MODELS, create, torch_names
from resnet_jax.models.blocks import BasicBlock, Bottleneck, PreActBlock
from resnet_jax.models.resnet import ResNet


def count_params(model, side=32):
    images = jnp.zeros((1, side, side, 3))
    init = lambda: model.init(jax.random.key(0), images, train=False)  # noqa: E731
    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(init)["params"]))


# torchvision's table of weights, for 1000 classes.
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("resnet18", 11_689_512),
        ("resnet34", 21_797_672),
        ("resnet50", 25_557_032),
        ("resnet101", 44_549_160),
        ("resnet152", 60_192_808),
        ("wide_resnet50_2", 68_883_240),
        ("wide_resnet101_2", 126_886_696),
        ("resnext50_32x4d", 25_028_904),
        ("resnext101_32x8d", 88_791_336),
        ("resnext101_64x4d", 83_455_272),
    ],
)
def test_parameters_equal_torchvisions(name, count):
    assert count_params(resnet_jax.create_model(name, num_classes=1000)) == count


# He et al. table 6, in millions; 20 and 56 are exact, from published weights.
@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("resnet20", 0.27),
        ("resnet32", 0.46),
        ("resnet44", 0.66),
        ("resnet56", 0.85),
        ("resnet110", 1.7),
    ],
)
def test_parameters_are_those_of_the_paper(name, millions):
    count = count_params(resnet_jax.create_model(name, num_classes=10))
    assert count / 1e6 == pytest.approx(millions, abs=0.005 if millions < 1 else 0.05)
    exact = {"resnet20": 269_722, "resnet56": 853_018}
    assert count == exact.get(name, count)


def test_hresnet_has_the_tutorials_layers():
    images = jnp.zeros((2, 32, 32, 3))
    model = resnet_jax.create_model("hresnet", num_classes=10)
    variables = jax.eval_shape(
        lambda: model.init(jax.random.key(0), images, train=False)
    )
    params = variables["params"]
    assert set(params) == {"b1", "b2", "b3", "fc1", "fc2", "fc3"}
    assert set(params["b1"]) == {"conv1", "bn1", "conv2", "bn2", "downsample"}
    assert params["b1"]["downsample"]["kernel"].shape == (1, 1, 3, 64)
    assert params["b1"]["conv1"]["bias"].shape == (64,)
    assert params["fc1"]["kernel"].shape == (4096, 2048)
    assert set(variables["batch_stats"]["b3"]) == {"bn1", "bn2"}
    # conv and bn of the three blocks, their shortcuts, and three linear layers
    blocks = [(3, 64), (64, 128), (128, 256)]
    count = sum(9 * i * o + o + 9 * o * o + o + 4 * o + i * o + o for i, o in blocks)
    count += 4096 * 2048 + 2048 + 2048 * 512 + 512 + 512 * 10 + 10
    assert count_params(model) == count


@pytest.mark.process
def test_hresnet_flattens_in_the_order_of_pytorch(key):
    model = resnet_jax.create_model("hresnet", num_classes=10)
    images = jax.random.normal(key, (1, 32, 32, 3))
    variables = jax.jit(partial(model.init, train=False))(key, images)
    # fc1's first 16 inputs are the 4x4 map of channel 0. Without them, channel 0 of the
    # last block no longer matters.
    kernel = variables["params"]["fc1"]["kernel"].at[:16].set(0.0)
    params = {**variables["params"], "fc1": {**variables["params"]["fc1"]}}
    params["fc1"]["kernel"] = kernel

    def logits(bias):
        bn2 = {**params["b3"]["bn2"], "bias": bias}
        changed = {**params, "b3": {**params["b3"], "bn2": bn2}}
        return apply({**variables, "params": changed}, images)

    apply = jax.jit(partial(model.apply, train=False))
    zeros = jnp.zeros(256)
    np.testing.assert_array_equal(logits(zeros.at[0].set(5.0)), logits(zeros))
    assert np.abs(logits(zeros.at[1].set(5.0)) - logits(zeros)).max() > 1e-3


def stages(model, side):
    def run():
        images = jnp.zeros((2, side, side, 3))
        variables = model.init(jax.random.key(0), images, train=False)
        return model.apply(variables, images, train=False, mutable=["intermediates"])

    logits, state = jax.eval_shape(run)
    shapes = {
        name: value[0].shape[1:] for name, value in state["intermediates"].items()
    }
    return logits, shapes


@pytest.mark.parametrize(
    ("name", "widening"),
    [(f"resnet{depth}", 1) for depth in (18, 34)]
    + [("resnet50", 4)]
    + [
        pytest.param(f"resnet{depth}", 4, marks=pytest.mark.process)
        for depth in (101, 152)
    ],
)
@pytest.mark.parametrize(("stem", "side"), [("imagenet", 56), ("cifar", 224)])
def test_stages_of_the_imagenet_family(name, widening, stem, side):
    model = resnet_jax.create_model(name, num_classes=7, stem=stem)
    logits, shapes = stages(model, 224)
    assert logits.shape == (2, 7)
    assert shapes == {
        "stem": (side, side, 64),
        **{
            f"layer{i + 1}": (side >> i, side >> i, (64 << i) * widening)
            for i in range(4)
        },
    }


@pytest.mark.parametrize("depth", [8, 20, 32, 44, 56, 110])
def test_stages_of_the_cifar_family(depth):
    model = resnet_jax.create_model(f"resnet{depth}", num_classes=10)
    logits, shapes = stages(model, 32)
    assert logits.shape == (2, 10)
    assert shapes == {
        "stem": (32, 32, 16),
        "layer1": (32, 32, 16),
        "layer2": (16, 16, 32),
        "layer3": (8, 8, 64),
    }


def test_stages_of_hresnet():
    _, shapes = stages(resnet_jax.create_model("hresnet", num_classes=10), 32)
    assert shapes == {
        "b1.pool": (16, 16, 64),
        "b2.pool": (8, 8, 128),
        "b3.pool": (4, 4, 256),
    }


@pytest.mark.parametrize(
    ("name", "width"), [("hresnet", 512), ("resnet50", 2048), ("resnet8", 64)]
)
def test_without_classes_a_model_gives_features(name, width):
    logits, _ = stages(resnet_jax.create_model(name, num_classes=0), 32)
    assert logits.shape == (2, width)


def test_option_a_shortcut_takes_every_other_pixel_and_zero_channels(key):
    block = BasicBlock(8, stride=2, shortcut="pad")
    x = jax.random.uniform(key, (1, 4, 4, 4))
    variables = block.init(key, x, train=False)
    # With bn2's scale at zero, the residual branch returns zeros.
    params = {**variables["params"]}
    params["bn2"] = {"scale": jnp.zeros(8), "bias": jnp.zeros(8)}
    y = block.apply({**variables, "params": params}, x, train=False)
    np.testing.assert_array_equal(y[..., 2:6], x[:, ::2, ::2])
    assert not np.abs(y[..., :2]).any() and not np.abs(y[..., 6:]).any()


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
@pytest.mark.parametrize("shortcut", ["pad", "conv", "conv_bn"])
def test_people_build_their_own(block, shortcut, key):
    model = ResNet(
        block=block,
        stage_sizes=(1, 2),
        widths=(4, 8),
        stem="cifar",
        shortcut=shortcut,
        num_classes=3,
        use_bias=True,
    )
    images = jax.random.normal(key, (2, 8, 8, 3))
    variables = jax.eval_shape(partial(model.init, train=False), key, images)
    assert ("downsample" in variables["params"]["layer2.0"]) == (shortcut == "conv")
    has_bn = "downsample.1" in variables["params"]["layer2.0"]
    assert has_bn == (shortcut == "conv_bn")
    assert "bias" in variables["params"]["layer1.0"]["conv1"]
    logits = jax.eval_shape(partial(model.apply, train=False), variables, images)
    assert logits.shape == (2, 3)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"widths": (8, 4), "shortcut": "pad"}, "'pad' cannot map 8 channels to 4"),
        ({"shortcut": "skip"}, "unknown shortcut 'skip': choose one of id"),
        (
            {"block": PreActBlock, "shortcut": "pad"},
            "PreActBlock has no shortcut 'pad'",
        ),
        ({"weight_init": "zeros"}, "unknown weight_init 'zeros': choose one of t"),
        ({"stage_sizes": (1,)}, "differ in length"),
        ({"groups": 2}, "BasicBlock has no groups"),
        ({"stride_in_1x1": True}, "BasicBlock has no stride_in_1x1"),
    ],
)
def test_a_network_that_cannot_be_built_says_why(options, part, key):
    sizes = {"stage_sizes": (1, 1), "widths": (4, 8)}
    model = ResNet(**{"block": BasicBlock, **sizes, **options}, num_classes=3)
    with pytest.raises(ConfigError, match=part):
        model.init(key, jnp.zeros((1, 32, 32, 3)), train=False)


def test_an_identity_shortcut_cannot_change_the_shape(key):
    model = ResNet(
        BasicBlock, (1, 1), num_classes=3, widths=(4, 8), shortcut="identity"
    )
    with pytest.raises(ConfigError, match="cannot map 4 channels to 8 at stride 2"):
        model.init(key, jnp.zeros((1, 32, 32, 3)), train=False)


def test_a_network_of_one_channel(key):
    model = resnet_jax.create_model("resnet8", num_classes=10, in_channels=1)
    images = jax.random.normal(key, (3, 28, 28, 1))
    variables = jax.jit(partial(model.init, train=False))(key, images)
    assert variables["params"]["conv1"]["kernel"].shape == (3, 3, 1, 16)
    logits = jax.jit(partial(model.apply, train=False))(variables, images)
    assert logits.shape == (3, 10) and np.isfinite(logits).all()
    assert (logits[0] != logits[1]).any()
    # A first convolution of one channel has a third of the parameters.
    wide = resnet_jax.create_model("resnet8", num_classes=10)
    own = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert count_params(wide) - own == 2 * 9 * 16


@pytest.mark.parametrize("name", ["hresnet", "resnet8", "resnet9", "preact_resnet18"])
@pytest.mark.parametrize(("own", "given"), [(3, 1), (1, 3)])
def test_images_of_other_channels_are_refused(name, own, given):
    model = resnet_jax.create_model(name, num_classes=10, in_channels=own)
    message = rf"\[B, H, W, {own}\], .*, {given}\]: create it with in_channels={given}"
    with pytest.raises(ConfigError, match=message):
        training.variable_shapes(model, (32, 32, given))
    training.variable_shapes(model, (32, 32, own))


def test_a_network_of_a_configuration():
    cfg = ModelConfig(model="resnet9", width=4, whiten=True, dtype="bfloat16")
    model = create(cfg, 7, in_channels=1)
    shapes = training.variable_shapes(model, (28, 28, 1))
    assert shapes["params"]["conv1"]["kernel"].shape == (1, 1, 9, 4)
    assert shapes["params"]["fc"]["bias"].shape == (7,)
    assert model.dtype == jnp.bfloat16
    with pytest.raises(ConfigError, match="hresnet has no option width"):
        create(ModelConfig(width=4), 7)


def test_train_has_no_default(key):
    model = resnet_jax.create_model("resnet8", num_classes=10)
    with pytest.raises(TypeError, match="train"):
        model.init(key, jnp.zeros((1, 32, 32, 3)))


@pytest.mark.process
def test_bfloat16_arithmetic_keeps_float32_parameters_and_logits(key):
    model = resnet_jax.create_model("resnet8", num_classes=10, dtype=jnp.bfloat16)
    images = jax.random.normal(key, (2, 32, 32, 3))
    variables = jax.jit(partial(model.init, train=False))(key, images)
    apply = jax.jit(partial(model.apply, train=True, mutable=["batch_stats"]))
    logits, moved = apply(variables, images)
    for leaf in jax.tree.leaves((logits, variables, moved)):
        assert leaf.dtype == jnp.float32
    exact = resnet_jax.create_model("resnet8", num_classes=10)
    train = jax.jit(partial(exact.apply, train=True, mutable=["batch_stats"]))
    expected, _ = train(variables, images)
    difference = np.abs(logits - expected).max()
    assert 0 < difference < 0.1 * np.abs(expected).max()


def test_param_dtype_is_respected(key):
    model = resnet_jax.create_model(
        "resnet8", num_classes=10, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16
    )
    init = partial(model.init, train=False)
    variables = jax.eval_shape(init, key, jnp.zeros((1, 32, 32, 3)))
    for collection, dtype in (("params", jnp.bfloat16), ("batch_stats", jnp.float32)):
        assert {x.dtype for x in jax.tree.leaves(variables[collection])} == {
            jnp.dtype(dtype)
        }


def test_float64_works_through(key):
    with jax.enable_x64(True):
        model = resnet_jax.create_model("resnet8", num_classes=10, dtype=jnp.float64)
        images = jnp.zeros((1, 32, 32, 3), jnp.float64)
        init = partial(model.init, train=False)
        variables = jax.eval_shape(init, key, images)
        logits = jax.eval_shape(partial(model.apply, train=False), variables, images)
        for leaf in jax.tree.leaves((logits, variables)):
            assert leaf.dtype == jnp.float64


def test_list_models_has_the_family():
    assert resnet_jax.list_models() == list(MODELS)
    assert {"hresnet", "resnet18", "resnet152", "resnet8", "resnet110"} <= set(MODELS)


def test_an_unknown_model_is_named_with_a_near_one():
    with pytest.raises(
        ConfigError, match="unknown model 'resnet19': did you mean resnet9"
    ):
        resnet_jax.create_model("resnet19", num_classes=10)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param("hresnet", {}, marks=pytest.mark.process),
        pytest.param("resnet18", {"stage_sizes": (1,) * 4}, marks=pytest.mark.process),
        pytest.param("resnet50", {"stage_sizes": (1,) * 4}, marks=pytest.mark.process),
        ("resnet20", {}),
    ],
)
def test_convolutions_are_drawn_as_each_network_asks(name, options, key):
    """Kernels use torchvision's fan-out initialization or PyTorch's default."""
    model = resnet_jax.create_model(name, num_classes=10, **options)
    init = jax.jit(partial(training.init_variables, model, (32, 32, 3)))
    params = jax.device_get(init(key=key)["params"])  # else JAX compiles per shape
    flat = jax.tree_util.tree_leaves_with_path(params)
    kernels = [(path, leaf) for path, leaf in flat if path[-1].key == "kernel"]
    assert len(kernels) > 5
    for path, kernel in kernels:
        if kernel.ndim == 4 and name != "hresnet":
            height, width, _, features = kernel.shape
            expected = (2 / (height * width * features)) ** 0.5
        else:
            expected = (3 * kernel.size / kernel.shape[-1]) ** -0.5
        error = 5 * expected / (2 * kernel.size) ** 0.5
        assert abs(kernel.std() - expected) < error, path
        assert abs(kernel.mean()) < 5 * expected / kernel.size**0.5, path


def test_an_image_too_small_for_hresnet_is_refused(key):
    model = resnet_jax.create_model("hresnet", num_classes=10)
    with pytest.raises(ConfigError, match="7x7 is too small"):
        model.init(key, jnp.zeros((1, 7, 7, 3)), train=False)


def test_stems_that_do_not_exist_are_refused():
    with pytest.raises(
        ConfigError, match="unknown stem 'big': choose imagenet or cifar"
    ):
        resnet_jax.create_model("resnet18", num_classes=10, stem="big")
    with pytest.raises(ConfigError, match="unknown stem 'big'"):
        ResNet(BasicBlock, (1,), num_classes=3, widths=(4,), stem="big").init(
            jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False
        )
    with pytest.raises(ConfigError, match="hresnet has no option stem"):
        resnet_jax.create_model("hresnet", num_classes=10, stem="cifar")


def leaf_names(model, side=32):
    variables = training.variable_shapes(model, (side, side, 3))
    return torch_names.list_names(variables["params"]), variables["batch_stats"]


@pytest.mark.parametrize("name", ["hresnet", "resnet18", "resnet20"])
def test_a_plain_network_has_the_same_layers_but_the_shortcuts(name):
    residual, _ = leaf_names(resnet_jax.create_model(name, num_classes=10))
    plain, _ = leaf_names(resnet_jax.create_model(name, num_classes=10, skip=False))
    assert plain == [n for n in residual if ".downsample" not in n]


def test_a_plain_block_is_its_residual_alone(key):
    x = jax.random.normal(key, (2, 4, 4, 8))
    plain, residual = (BasicBlock(8, shortcut=s) for s in ("none", "identity"))
    variables = plain.init(key, x, train=False)
    found = plain.apply(variables, x, train=False)
    both = residual.apply(variables, x, train=False)
    sure = (found > 0) & (both > 0)  # where no ReLU hides the sum
    assert sure.mean() > 0.2
    np.testing.assert_allclose(both[sure], (found + x)[sure], rtol=1e-5)
    assert found.min() == 0


@pytest.mark.parametrize("name", ["hresnet", "resnet18", "resnet20", "resnet50"])
def test_without_batch_norm_every_convolution_has_a_bias(name):
    found, batch_stats = leaf_names(
        resnet_jax.create_model(name, num_classes=10, norm="none")
    )
    assert not batch_stats and not any(".bn" in n or n.startswith("bn") for n in found)
    layers = {n.rpartition(".")[0] for n in found}
    assert set(found) == {
        f"{layer}.{leaf}" for layer in layers for leaf in ("weight", "bias")
    }


def test_dropout_is_of_training_alone_and_keeps_the_mean(key):
    options = {"block": BasicBlock, "stage_sizes": (1,), "widths": (64,)}
    model = ResNet(num_classes=0, stem="cifar", dropout=0.25, **options)
    x = jax.random.normal(key, (64, 8, 8, 3))
    variables = model.init(key, x, train=False)
    kept = model.apply(variables, x, train=False)
    rngs = {"dropout": key}
    dropped, _ = model.apply(variables, x, train=True, mutable=True, rngs=rngs)
    bare, _ = model.clone(dropout=0.0).apply(variables, x, train=True, mutable=True)
    share = float((dropped == 0).mean())
    assert 0.23 < share < 0.27 and (kept != 0).all()
    np.testing.assert_allclose(dropped[dropped != 0], bare[dropped != 0] / 0.75, 1e-5)


def test_init_overrides_the_models_own(key):
    for init, gain in (("kaiming", 2.0), ("torch", 1 / 3)):
        model = resnet_jax.create_model("resnet8", num_classes=10, init=init)
        params = init_variables(model, (32, 32, 3), key=key)["params"]
        kernel = params["layer3.0"]["conv2"]["kernel"]  # fan in and out are the same
        spread = float(kernel.std()) * (9 * 64) ** 0.5
        assert spread == pytest.approx(gain**0.5, rel=0.03)


def test_a_norm_that_does_not_exist_is_refused():
    with pytest.raises(ConfigError, match="unknown norm 'layer': choose batch or none"):
        resnet_jax.create_model("resnet8", num_classes=10, norm="layer")


@pytest.mark.parametrize(
    "name", by_tier(["resnet8", "resnet9", "hresnet"], ["resnet9", "hresnet"])
)
def test_the_momentum_of_a_network_is_that_of_all_its_layers(name, key):
    def change(**options):
        model = resnet_jax.create_model(name, num_classes=10, **options)
        images = jax.random.normal(key, (4, 16, 16, 3))
        variables = init_variables(model, (16, 16, 3), key=key)
        _, moved = model.apply(variables, images, train=True, mutable=["batch_stats"])
        old, new = variables["batch_stats"], moved["batch_stats"]
        return jax.tree.leaves(jax.tree.map(jnp.subtract, new, old))

    for a, b in zip(change(), change(bn_momentum=0.5), strict=True):
        assert a.any()
        np.testing.assert_allclose(b, 5 * a, rtol=1e-4, atol=1e-6)


# Counts of the usual PyTorch programs, plus 1,024 in the last BatchNorm and 10 in the
# last bias, which two of them omit.
@pytest.mark.parametrize(
    ("name", "count"),
    [("wrn28_10", 36_479_194), ("preact_resnet18", 11_172_170), ("resnet9", 6_573_130)],
)
def test_parameters_of_the_other_networks(name, count):
    assert count_params(resnet_jax.create_model(name, num_classes=10)) == count


def test_the_width_of_resnet9_is_of_all_its_layers():
    def shapes(**options):
        model = resnet_jax.create_model("resnet9", num_classes=10, **options)
        variables = training.variable_shapes(model, (32, 32, 3))
        return variables["params"], variables["batch_stats"]

    params, _ = shapes(width=8)
    assert params["conv1"]["kernel"].shape == (3, 3, 3, 8)
    for stage, features in (("layer1", 16), ("layer2", 32), ("layer3", 64)):
        assert params[f"{stage}.conv"]["kernel"].shape[-1] == features
    assert params["fc"]["kernel"].shape == (64, 10)
    assert ("layer1.block" in params, "layer2.block" in params) == (True, False)
    params, batch_stats = shapes(width=8, whiten=True)
    assert params["conv1"]["kernel"].shape == (1, 1, 27, 8)
    assert batch_stats["whiten"]["kernel"].shape == (3, 3, 3, 27)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "resnet20",
            {"width": 8},
            "no option width: choose from bn_eps, bn_momentum, drop_path, ",
        ),
        ("hresnet", {"whiten": True}, "hresnet has no option whiten"),
        ("resnet9", {"stem": "cifar"}, "resnet9 has no option stem"),
        (
            "wrn28_10",
            {"zero_init_last": True},
            "the blocks of wrn28_10 do not end with BatchNorm",
        ),
        (
            "resnet8",
            {"skip": False, "shortcut": "pad"},
            "--no-skip removes all shortcuts",
        ),
        ("resnet8", {"norm": "none", "bn_eps": 0.1}, "bn_eps needs BatchNorm: drop"),
        ("resnet8", {"bn_eps": 0.0}, "bn_eps 0.0 is not greater than 0"),
        ("resnet9", {"bn_momentum": 1.5}, r"bn_momentum 1.5 is not in \[0, 1\]"),
        ("hresnet", {"stride_in_1x1": True}, "hresnet has no option stride_in_1x1"),
        *(
            ("resnet20", {"skip": False, name: value}, f"{name} needs a shortcut")
            for name, value in (("drop_path", 0.1), ("zero_init_last", True))
        ),
    ],
)
def test_options_of_other_networks_are_refused(name, options, message):
    with pytest.raises(ConfigError, match=message):
        resnet_jax.create_model(name, num_classes=10, **options)


def test_an_image_too_small_for_resnet9_is_refused(key):
    model = resnet_jax.create_model("resnet9", num_classes=10, width=4)
    with pytest.raises(
        ConfigError, match="resnet9 halves the image size three times: 7x8"
    ):
        model.init(key, jnp.zeros((1, 7, 8, 3)), train=False)


@pytest.mark.parametrize("name", ["hresnet", "resnet8", "resnet9", "resnet50"])
def test_blocks_may_begin_as_their_shortcuts(name, key):
    model = resnet_jax.create_model(name, num_classes=10, zero_init_last=True)
    side = 32 if name != "resnet50" else 64
    last = "bn3" if name == "resnet50" else "bn2"

    def drawn():  # without kernels, which take long to draw
        params = init_variables(model, (side, side, 3), key=key)["params"]
        blocks = [block for block in params.values() if last in block]
        return [(block[last]["scale"], block["bn1"]["scale"]) for block in blocks]

    scales = jax.device_get(jax.jit(drawn)())
    assert len(scales) >= 2
    for last_scale, first_scale in scales:
        assert (last_scale == 0).all() and (first_scale == 1).all()


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck, PreActBlock])
def test_a_dropped_path_leaves_the_shortcut_and_the_others_make_up_for_it(block, key):
    features = 8 // block.expansion
    x = jnp.abs(jax.random.normal(key, (400, 4, 4, 8)))
    options = {} if block is PreActBlock else {"shortcut": "identity"}
    bare = block(features, **options)
    variables = bare.init(key, x, train=False)

    def apply(block, train):
        return block.apply(
            variables, x, train=train, mutable=["batch_stats"], rngs={"dropout": key}
        )[0]

    dropping = bare.clone(drop_path=0.25)
    found, whole = apply(dropping, True), apply(bare, True)
    same = np.asarray((found == x).all((1, 2, 3)))
    assert 0.18 < same.mean() < 0.32
    expected = x + (whole - x) / 0.75
    if block is not PreActBlock:  # x >= 0, so what ReLU cut off stays below 0
        expected = jnp.maximum(expected, 0)
    np.testing.assert_allclose(found[~same], expected[~same], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(apply(dropping, False), apply(bare, False))


@pytest.mark.parametrize(
    "name, count", [("resnet20", 9), ("hresnet", 3), ("resnet9", 2)]
)
def test_paths_are_dropped_the_more_the_deeper(name, count):
    rates = {}

    def watch(call, args, kwargs, context):
        if isinstance(context.module, BasicBlock):
            rates[context.module.name] = context.module.drop_path
        return call(*args, **kwargs)

    model = resnet_jax.create_model(name, num_classes=10, drop_path=0.4)
    with nn.intercept_methods(watch):
        training.variable_shapes(model, (32, 32, 3))
    np.testing.assert_allclose(list(rates.values()), np.linspace(0, 0.4, count))


def test_the_stride_is_the_first_convolutions_on_request(key):
    """This follows He et al. 2015; torchvision gives it to the 3x3 convolution."""
    x = jnp.zeros((1, 8, 8, 16))
    for in_1x1, side in ((True, 4), (False, 8)):
        block = resnet_jax.Bottleneck(8, stride=2, stride_in_1x1=in_1x1)
        shapes = []

        def watch(call, args, kwargs, context, shapes=shapes):
            y = call(*args, **kwargs)
            if context.module.name == "conv1":
                shapes.append(y.shape)
            return y

        with nn.intercept_methods(watch):
            y = jax.eval_shape(lambda b=block: b.init_with_output(key, x, train=False))
        assert shapes == [(1, side, side, 8)] and y[0].shape == (1, 4, 4, 32)


def test_the_shortcuts_of_a_network_of_cifar(key):
    model = resnet_jax.create_model("resnet8", num_classes=10, shortcut="conv_bn")
    params = training.variable_shapes(model, (32, 32, 3))["params"]
    assert {"downsample.0", "downsample.1"} <= params["layer2.0"].keys()
    assert "downsample.0" not in params["layer1.0"]
