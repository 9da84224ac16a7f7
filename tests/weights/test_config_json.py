"""config.json as timm 1.0 and transformers 5 write it, and damaged ones."""

import json
import re
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from resnet_jax.errors import DataError
from resnet_jax.weights.config_json import Described, read_described

# Written by timm.models.save_for_hf(create_model("resnet18.a1_in1k")).
TIMM: dict[str, Any] = {
    "architecture": "resnet18",
    "num_classes": 1000,
    "num_features": 512,
    "global_pool": "avg",
    "model_args": {"in_chans": 3, "num_classes": 1000, "global_pool": "avg"},
    "pretrained_cfg": {
        "tag": "a1_in1k",
        "custom_load": False,
        "input_size": [3, 224, 224],
        "test_input_size": [3, 288, 288],
        "fixed_input_size": False,
        "interpolation": "bicubic",
        "crop_pct": 0.95,
        "test_crop_pct": 1.0,
        "crop_mode": "center",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "num_classes": 1000,
        "pool_size": [7, 7],
        "first_conv": "conv1",
        "classifier": "fc",
        "license": "apache-2.0",
        "origin_url": "https://github.com/huggingface/pytorch-image-models",
        "paper_ids": "arXiv:2110.00476",
    },
}
# Written by ResNetForImageClassification(config).save_pretrained.
TRANSFORMERS: dict[str, Any] = {
    "architectures": ["ResNetForImageClassification"],
    "depths": [3, 4, 6, 3],
    "downsample_in_bottleneck": False,
    "downsample_in_first_stage": False,
    "dtype": "float32",
    "embedding_size": 64,
    "hidden_act": "relu",
    "hidden_sizes": [256, 512, 1024, 2048],
    "id2label": {"0": "cat", "1": "dog", "2": "bird"},
    "label2id": None,
    "layer_type": "bottleneck",
    "model_type": "resnet",
    "num_channels": 3,
    "out_features": ["stage4"],
    "out_indices": [4],
    "stage_names": ["stem", "stage1", "stage2", "stage3", "stage4"],
    "transformers_version": "5.24.0",
}
BASIC = {"layer_type": "basic", "hidden_sizes": [64, 128, 256, 512]}
# Written by ConvNextImageProcessor(...).save_pretrained, as for the Hub's ResNets.
CONVNEXT: dict[str, Any] = {
    "crop_pct": 0.875,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_processor_type": "ConvNextImageProcessor",
    "image_std": [0.229, 0.224, 0.225],
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 224},
}


@pytest.fixture
def read(tmp_path):
    def read(config: Any, processor: Any = None) -> Described:
        for name, content in (
            ("config.json", config),
            ("preprocessor_config.json", processor),
        ):
            (tmp_path / name).unlink(missing_ok=True)
            if content is not None:
                text = content if isinstance(content, str) else json.dumps(content)
                (tmp_path / name).write_text(text, "utf-8")
        return read_described(tmp_path)

    return read


@pytest.fixture
def refused(read):
    def refused(words: str, *contents: Any) -> str:
        with pytest.raises(DataError, match=re.escape(words)) as caught:
            read(*contents)
        message = str(caught.value)
        assert message.isprintable() and len(message) < 1000
        return message

    return refused


def _timm(**changes: Any) -> dict[str, Any]:
    """Returns TIMM with changes, including those of its pretrained_cfg."""
    nested = TIMM["pretrained_cfg"]
    inner = {name: changes.pop(name) for name in [*changes] if name in nested}
    return {**TIMM, "pretrained_cfg": {**nested, **inner}, **changes}


def test_timm(read):
    assert read(TIMM) == Described(
        architecture="resnet18",
        num_classes=1000,
        in_channels=3,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        crop=224,
        resize=235,
        interpolation="bicubic",
        class_names=None,
        stride_in_1x1=False,
        stated="timm's resnet18",
    )


def test_timm_of_one_channel_with_names(read):
    config = {
        **_timm(input_size=[1, 224, 224], mean=[0.449], std=[0.226]),
        "num_classes": 3,
        "label_names": ["a", "b", "c"],
        "label_descriptions": {"a": "A x", "b": "B", "c": "C"},
        "model_args": {"num_classes": 3, "in_chans": 1, "global_pool": "avg"},
    }
    found = read(config)
    assert (found.in_channels, found.num_classes) == (1, 3)
    assert (found.mean, found.std) == ((0.449,), (0.226,))
    assert found.class_names == ("a", "b", "c")


def test_timm_averages_the_mean_of_three_channels_for_one(read):
    found = read(_timm(model_args={"in_chans": 1}, mean=[0.5, 0.25, 0.75]))
    assert (found.in_channels, found.mean) == (1, (0.5,))


def test_timm_as_it_wrote_one_level(read):
    nested = {**TIMM["pretrained_cfg"], "labels": ["x", "y"], "num_classes": 2}
    found = read({"architecture": "resnet18", **nested})
    assert found.class_names == ("x", "y")
    assert found._replace(class_names=None, num_classes=1000) == read(TIMM)


def test_timm_names_by_number(read):
    config = _timm(num_classes=2)
    config["num_classes"] = 2
    numbered = {**config, "label_names": {"1": "b", "0": "a"}}
    assert read(numbered).class_names == ("a", "b")
    with_gaps = {**config, "label_names": {"0": "a", "7": "b"}}
    assert read(with_gaps).class_names is None


@pytest.mark.parametrize(
    "changes, stated",
    [
        ({"architecture": "resnet50d"}, "timm's resnet50d"),
        ({"architecture": "a\x1b[2Jb"}, "timm's a?[2Jb"),
        (
            {"model_args": {"output_stride": 8, "in_chans": 3}},
            "timm's resnet18, other output_stride",
        ),
        ({"global_pool": "max", "model_args": {}}, "resnet18, other global_pool"),
        ({"model_args": {"global_pool": "avgmax"}}, "resnet18, other global_pool"),
    ],
)
def test_timm_of_another_network_says_which(read, changes, stated):
    found = read(_timm(**changes))
    assert found.architecture is None and stated in found.stated


@pytest.mark.parametrize(
    "changes, crop, resize",
    [
        ({"crop_pct": 0.875}, 224, 256),
        ({"crop_pct": 1}, 224, 224),
        ({"crop_mode": "squash"}, 224, None),
        ({"crop_mode": None}, 224, 235),
        ({"crop_pct": None}, 224, None),
        ({"input_size": [3, 288, 288], "crop_pct": 0.95}, 288, 303),
        ({"input_size": [3, 224, 288]}, None, None),
        ({"input_size": None}, None, None),
    ],
)
def test_timm_crops(read, changes, crop, resize):
    found = read(_timm(**changes))
    assert (found.crop, found.resize, found.in_channels) == (crop, resize, 3)


def test_transformers(read):
    unsaid = dict.fromkeys(["mean", "std", "crop", "resize", "interpolation"])
    sizes = "[3, 4, 6, 3], hidden sizes [256, 512, 1024, 2048], embedding size 64, relu"
    expected = Described(
        architecture="resnet50",
        num_classes=3,
        in_channels=3,
        class_names=("cat", "dog", "bird"),
        stride_in_1x1=False,
        stated=f"transformers' resnet with bottleneck layers, depths {sizes}",
        **unsaid,
    )
    assert read(TRANSFORMERS) == expected
    assert read(TRANSFORMERS, CONVNEXT) == expected._replace(
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        crop=224,
        resize=256,
        interpolation="bicubic",
    )


@pytest.mark.parametrize(
    "changes, name",
    [
        ({**BASIC, "depths": [2, 2, 2, 2]}, "resnet18"),
        ({**BASIC, "depths": [3, 4, 6, 3]}, "resnet34"),
        ({"depths": [3, 4, 23, 3]}, "resnet101"),
        ({"depths": [3, 8, 36, 3]}, "resnet152"),
        ({"depths": [2, 2, 2, 2]}, None),
        ({"layer_type": "basic"}, None),
        ({"layer_type": "other"}, None),
        ({"embedding_size": 32}, None),
        ({"hidden_act": "gelu"}, None),
        ({"downsample_in_first_stage": True}, None),
        ({"hidden_sizes": [64, 128, 256, 512]}, None),
        ({"model_type": "regnet"}, None),
    ],
)
def test_transformers_architectures(read, changes, name):
    assert read({**TRANSFORMERS, **changes}).architecture == name


def test_transformers_says_which_other_network_it_is(read):
    tiny = {"depths": [1, 1], "hidden_sizes": [8, 16], "embedding_size": 8}
    stated = read({**TRANSFORMERS, **tiny}).stated
    assert "[1, 1], hidden sizes [8, 16], embedding size 8" in stated
    assert read({**TRANSFORMERS, "model_type": "vit"}).stated == "transformers' vit"


def test_transformers_stride_in_the_first_convolution(read):
    assert read({**TRANSFORMERS, "downsample_in_bottleneck": True}).stride_in_1x1


def test_transformers_leaves_out_two_classes_and_has_placeholders(read):
    unnamed = {key: v for key, v in TRANSFORMERS.items() if key != "id2label"}
    assert read(unnamed)[1] == 2
    assert read({**unnamed, "architectures": ["ResNetModel"]})[1] is None
    labels = {str(index): f"LABEL_{index}" for index in range(12)}
    found = read({**unnamed, "id2label": labels})
    assert (found.num_classes, found.class_names) == (12, None)


def test_a_config_that_leaves_all_out_has_the_defaults(read):
    found = read({"model_type": "resnet"})
    assert (found.architecture, found.in_channels) == ("resnet50", 3)


BIT = {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}}


@pytest.mark.parametrize(
    "processor, crop, resize",
    [
        ({"crop_pct": 0.875, "size": 224}, 224, 256),  # ConvNextFeatureExtractor's
        ({"crop_pct": 0.95, "size": {"shortest_edge": 288}}, 288, 303),
        ({"crop_pct": 0.875, "size": {"shortest_edge": 384}}, 384, None),  # squashed
        ({**BIT, "do_center_crop": True}, 224, 256),
        ({**BIT, "do_center_crop": False}, None, 256),
        ({**BIT, "do_resize": False}, 224, None),
        ({**BIT, "size": {"height": 256, "width": 256}}, 224, None),
        ({"size": {"height": 224, "width": 224}}, 224, None),  # ViTImageProcessor's
        ({"size": 224}, 224, None),  # ViTFeatureExtractor's
        ({"size": {"height": 224, "width": 320}}, None, None),
        ({}, None, None),
    ],
)
def test_transformers_crops(read, processor, crop, resize):
    found = read(TRANSFORMERS, processor)
    assert (found.crop, found.resize) == (crop, resize)


def test_transformers_normalization(read, refused):
    plain = read(TRANSFORMERS, {**CONVNEXT, "do_normalize": False})
    assert (plain.mean, plain.std) == ((0, 0, 0), (1, 1, 1))
    one = read({**TRANSFORMERS, "num_channels": 1}, {"image_mean": [0.5]})
    assert (one.mean, one.std) == ((0.5,), None)
    for changes in ({"do_rescale": False}, {"rescale_factor": 1 / 127.5}):
        refused("not scale images to [0, 1]", TRANSFORMERS, {**CONVNEXT, **changes})


@pytest.mark.parametrize(
    "config, words",
    [
        ("{", "config.json is missing, or is not in"),
        ("", "Expecting value"),
        ("[" * 10**5, "nested too deeply"),
        ("[]", "it is []"),
        ("{}", "neither architecture nor model_type"),
        ({"architecture": {"model": "resnet18"}}, "architecture is {'model'"),
        (_timm(mean=[0.5, 0.5]), "mean has 2 values for 3 channels"),
        (_timm(mean=[]), "mean is []"),
        (_timm(mean=[float("nan")] * 3), "mean is nan"),
        (_timm(mean=[10**400] * 3), "mean is"),
        (_timm(mean=[True] * 3), "mean is True"),
        (_timm(std=[0.5, 0, 0.5]), "std is"),
        (_timm(crop_pct=0), "crop_pct is 0"),
        (_timm(crop_pct=1e-300), "crop_pct is 1e-300"),
        (_timm(crop_pct=-0.9), "crop_pct is -0.9"),
        (_timm(crop_pct=1.5), "crop_pct is 1.5"),
        (_timm(input_size=[3, 224]), "input_size is [3, 224]"),
        (_timm(input_size=[3, 10**6, 10**6]), "input_size is 1000000"),
        (_timm(interpolation="random"), "interpolation is 'random'"),
        (_timm(pretrained_cfg=[]), "pretrained_cfg is []"),
        ({**TIMM, "num_classes": -1}, "num_classes is -1"),
        ({**TIMM, "num_classes": True}, "num_classes is True"),
        ({**TIMM, "label_names": ["a"]}, "it has 1 names for 1000 classes"),
        ({**TIMM, "label_names": [["a"]]}, "label_names is ['a']"),
        ({**TRANSFORMERS, "depths": [3, "4"]}, "depths is '4'"),
        ({**TRANSFORMERS, "downsample_in_bottleneck": 1}, "downsample_in_bottleneck"),
        ({**TRANSFORMERS, "id2label": ["a"]}, "id2label is ['a']"),
    ],
)
def test_what_is_malformed_is_named(refused, config, words):
    refused(words, config)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"resample": 6}, "resample is 6"),
        ({"size": {"height": [], "width": []}}, "size is []"),
        ({"size": 10**6}, "size is 1000000"),
        ({"image_std": [0, 0, 0]}, "image_std is"),
        ({"image_mean": [0.5]}, ""),
    ],
)
def test_a_malformed_processor_is_named(read, refused, changes, words):
    processor = {**CONVNEXT, **changes}
    if words:
        message = refused(words, TRANSFORMERS, processor)
        assert "preprocessor_config.json" in message
    else:  # one value for all channels
        assert read(TRANSFORMERS, processor).mean == (0.5, 0.5, 0.5)


def test_a_folder_without_config_is_named(tmp_path):
    with pytest.raises(DataError, match="config.json is missing, or"):
        read_described(tmp_path)


def test_names_of_no_unicode_can_be_printed(read):
    config = {**TIMM, "num_classes": 1, "label_names": ["\ud800"]}
    assert read(config).class_names[0].encode("utf-8")


_LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-3, 300)
    | st.integers()
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from(["resnet18", "basic", "avg", "bicubic", "center", "resnet"])
)
_VALUES = st.recursive(
    _LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
        | st.fixed_dictionaries({"shortest_edge": inner})
        | st.fixed_dictionaries({"height": inner, "width": inner})
    ),
    max_leaves=6,
)


def _mutated(base: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    names = st.sampled_from(sorted({*base, *base.get("pretrained_cfg", {}), "labels"}))
    changes = st.dictionaries(names, _VALUES, max_size=3)
    return changes.map(lambda found: {**base, **found})


_CONFIGS = st.one_of(
    _VALUES,
    _mutated(TIMM),
    _mutated({"architecture": "resnet18", **TIMM["pretrained_cfg"]}),
    _mutated(TIMM["pretrained_cfg"]).map(lambda c: {**TIMM, "pretrained_cfg": c}),
    _mutated(TRANSFORMERS),
)


@settings(
    max_examples=300,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(_CONFIGS, _VALUES | _mutated(CONVNEXT) | _mutated({**CONVNEXT, **BIT}))
def test_any_json_is_described_or_refused_in_one_line(read, config, processor):
    try:
        found = read(config, processor)
    except DataError as error:
        assert str(error).isprintable()
        return
    assert found.stated.isprintable()
    for values in (found.mean, found.std):
        assert values is None or len(values) == found.in_channels
    assert found.resize is None or found.crop is None or found.resize >= 1
    names, classes = found.class_names, found.num_classes
    assert names is None or classes in (None, len(names))
