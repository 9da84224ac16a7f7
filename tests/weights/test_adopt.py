"""Reads weights files as people have them, written without torch."""

import argparse
import json
import re
import zipfile

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file
from torch_writer import save

import resnet_jax
from resnet_jax import models, training
from resnet_jax.errors import ConfigError, DataError
from resnet_jax.weights.adopt import adopt
from resnet_jax.weights.read import read

NUM_CLASSES = 4


def make(name="resnet8", num_classes=NUM_CLASSES, seed=0, **options):
    """(model, its shapes, a state_dict of random numbers)."""
    model = models.create_model(name, num_classes=num_classes, **options)
    shape = (32, 32, model.in_channels)
    shapes = training.variable_shapes(model, shape)
    rng = np.random.default_rng(seed)
    drawn = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), shapes)
    return model, shapes, resnet_jax.to_torch(drawn)


def adopted(path, name="resnet8", **options):
    model, shapes, _ = make(name, **options.pop("model", {}))
    if options.get("new_head", False) is not False:
        shapes = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    variables, _ = adopt(read(path), shapes, model, name=name, **options)
    return resnet_jax.to_torch(variables)


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, name)


def prefixed(prefix, state):
    return {prefix + name: value for name, value in state.items()}


AROUND = {
    "nothing": lambda s: s,
    "a key": lambda s: {"net": s, "acc": np.float32([93.5]), "epoch": 7},
    "a prefix": lambda s: {"state_dict": prefixed("backbone.", s)},
    "wrappers": lambda s: prefixed("module._orig_mod.", s),
    "a count beside": lambda s: {**prefixed("module.", s), "n_averaged": np.array([3])},
    "options": lambda s: {"model": s, "args": argparse.Namespace(lr=0.1)},
    "a loss": lambda s: {**prefixed("model.", s), "loss.weight": np.float32([1, 1])},
    "a list": lambda s: [s, 3],
    "depths": lambda s: {"state": {"model": prefixed("module.model.", s)}},
}


@pytest.mark.parametrize("kind", AROUND)
def test_weights_are_found_in_whatever_lies_around_them(kind, tmp_path):
    _, _, state = make()
    path = save(tmp_path / "w.pth", AROUND[kind](state))
    assert_same(adopted(path), state)
    if kind != "a list":  # the two library functions give the same result
        _, shapes, _ = make()
        found = resnet_jax.from_torch(resnet_jax.read_state_dict(path), shapes)
        assert_same(resnet_jax.to_torch(found), state)


def test_one_line_says_what_was_adopted(tmp_path, caplog):
    caplog.set_level("INFO")
    _, _, state = make()
    renamed = {re.sub(r"^fc\.", "fc.1.", name): value for name, value in state.items()}
    content = {**prefixed("module.model.", renamed), "loss.weight": np.float32([1, 1])}
    path = save(tmp_path / "w.pth", {"state_dict": content})
    adopted(path)
    (line,) = [r.getMessage() for r in caplog.records if r.name.startswith("resnet")]
    assert line == (
        f"weights: {path}, key state_dict, prefix model., without module., "
        "its module.model.fc.1 as fc, 1 tensor unused"
    )


def test_of_two_networks_one_is_chosen(tmp_path):
    _, _, state = make()
    _, _, other = make(seed=1)
    path = save(tmp_path / "w.pth", {"model": state, "model_ema": other})
    named = "'model', 'model_ema': choose one with --weights-key model_ema"
    with pytest.raises(DataError, match=named):
        adopted(path)
    with pytest.raises(DataError, match="'model', 'model_ema': pass one of them as"):
        resnet_jax.read_state_dict(path)
    assert_same(adopted(path, key="model_ema"), other)
    assert_same(adopted(path, key="model"), state)
    found = resnet_jax.read_state_dict(path, key="model")
    assert found.keys() == state.keys()
    for call in (adopted, resnet_jax.read_state_dict):
        with pytest.raises(
            ConfigError, match="no weights under 'ema'; it has 'model', '"
        ):
            call(path, key="ema")
    # The prefix of a wrapper is removed only if names stay distinct.
    beside = save(tmp_path / "beside.pth", {**state, **prefixed("module.", other)})
    with pytest.raises(DataError, match="the file itself, 'module': choose one with"):
        adopted(beside)
    assert_same(adopted(beside, key="module"), other)
    same = save(tmp_path / "same.pth", {"model": state, "model_ema": state})
    assert_same(adopted(same), state)


def test_a_stand_in_among_the_weights_is_refused(tmp_path):
    _, _, state = make()
    content = {**state, "bn1.weight": argparse.Namespace()}
    path = save(tmp_path / "w.pth", content)
    with pytest.raises(
        DataError, match="bn1.weight is an object of argparse.* not a tensor"
    ):
        adopted(path)
    path = save(tmp_path / "w.pth", {**state, "layer1.0.gate": argparse.Namespace()})
    with pytest.raises(DataError, match="does not fit resnet8"):
        adopted(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"fc.weight": None, "fc.bias": None},
            "has no last layer with 64 input features",
        ),
        ({"fc.0.weight": (64,)}, "ends in .*'fc.weight', .* not in a single linear"),
        ({"fc.weight": (9, 64), "fc.bias": (9,)}, "has 9 classes, but the data has 4"),
        ({"fc.weight": (4, 65)}, "not in a single linear layer with 64 input features"),
        (
            {"conv1.weight": (16, 1, 3, 3)},
            "takes images with 1 channel, .* --in-channels",
        ),
        (
            {"conv1.weight": (16, 3, 7, 7)},
            "convolution with a 7x7 kernel: use --stem imagenet",
        ),
        ({"layer1.0.se.fc1.weight": (4, 16, 1, 1)}, "squeeze-and-excitation"),
        ({"layer2.0.conv1.weight": (9, 16, 3, 3)}, "not fit resnet8: 1 misshapen"),
        ({"bn1.running_mean": None}, "not fit resnet8: 1 missing .bn1.running_mean"),
        ({"mean": (3,), "std": (3, 1, 1)}, "normalizes images itself, with 0.0,0.0"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(change, words, tmp_path):
    _, _, state = make()
    for name, shape in change.items():
        state.pop(name, None)
        if shape is not None:
            state[name] = np.zeros(shape, np.float32)
    path = save(tmp_path / "w.pth", state)
    with pytest.raises(DataError, match=words) as caught:
        adopted(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_the_model_that_the_names_fit_is_named(tmp_path):
    for name, options, flags in (
        ("resnet20", {}, "resnet20"),
        ("resnet8", {"shortcut": "conv_bn"}, "resnet8 --shortcut conv_bn"),
        ("resnet20", {"in_channels": 1}, "resnet20 --in-channels 1"),
    ):
        _, _, state = make(name, **options)
        path = save(tmp_path / "w.pth", state)
        with pytest.raises(DataError, match=f"is a {name}: use --model {flags}$"):
            adopted(path)
        assert_same(adopted(path, name, model=options), state)


def test_a_new_head_where_there_is_none(tmp_path, caplog):
    caplog.set_level("INFO")
    _, _, state = make()
    bare = {n: v for n, v in state.items() if not n.startswith("fc")}
    hidden = {"fc.0.weight": np.ones((8, 64), np.float32), **bare}
    for content, said in ((bare, "a new fc"), (hidden, "a new fc instead of 'fc.0.w")):
        found = adopted(save(tmp_path / "w.pth", content), new_head=None)
        np.testing.assert_array_equal(found["conv1.weight"], state["conv1.weight"])
        assert not found["fc.weight"].any() and said in caplog.text
        caplog.clear()
    kept = adopted(save(tmp_path / "w.pth", state), new_head=None)
    np.testing.assert_array_equal(kept["fc.weight"], state["fc.weight"])
    caplog.clear()
    new = adopted(save(tmp_path / "w.pth", state), new_head=True)
    assert not new["fc.weight"].any()
    assert caplog.text.endswith(", a new fc instead of 'fc'\n")


def test_folders_zips_and_parts(tmp_path):
    _, _, state = make()
    (tmp_path / "one").mkdir()
    save(tmp_path / "one" / "best.pth", state)
    (tmp_path / "one" / "optimizer.bin").touch()
    (tmp_path / "one" / "log.txt").touch()
    assert_same(adopted(tmp_path / "one"), state)
    save(tmp_path / "one" / "last.pth", state)
    with pytest.raises(
        DataError, match="several weights files: pass one of best.pth, "
    ):
        read(tmp_path / "one")
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="none holds no weights file"):
        read(tmp_path / "none")

    for count in (1, 2):
        with zipfile.ZipFile(tmp_path / "w.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for number in range(count):
                archive.write(tmp_path / "one" / "best.pth", f"net/{number}.pth")
            archive.writestr("__MACOSX/net/._0.pth", "")
        if count == 1:
            assert_same(adopted(tmp_path / "w.zip"), state)
    with pytest.raises(DataError, match="one weights file .net/0.pth, net/1.pth.:"):
        read(tmp_path / "w.zip")
    with zipfile.ZipFile(tmp_path / "w.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w.pth", bytes(10**7))
    with pytest.raises(DataError, match="many times its own size, like a zip bomb"):
        read(tmp_path / "w.zip")

    parts = tmp_path / "parts"
    parts.mkdir()
    names, files = sorted(state), ("a-00001-of-00002.safetensors", "b.safetensors")
    for file, some in zip(files, (names[::2], names[1::2]), strict=True):
        save_file({name: state[name] for name in some}, parts / file)
    where = {n: files[index % 2] for index, n in enumerate(names)}
    index = parts / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    assert_same(adopted(index), state)
    assert_same(adopted(parts), state)
    for wrong in ({**where, "x": "../../etc/passwd"}, {"x": index.name}, [], {}):
        index.write_text(json.dumps({"weight_map": wrong}))
        with pytest.raises(DataError, match="is JSON, but not an index of weights"):
            read(index)
    index.write_text(json.dumps({"weight_map": {**where, "x": files[0]}}))
    with pytest.raises(DataError, match=f"lists x, which {files[0]} does not contain"):
        read(index)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x89HDF\r\n\x1a\n", "is an HDF5 .Keras. file"),
        (b"\x1f\x8b\x08\x00", "is compressed with gzip"),
        (b"\x08\x07\x12\x07pytorch", "is an ONNX file"),
        (b"\x80\x04\x95\x00\x00", "is a pickle that torch.save did not write"),
        (b'{"a": 1}', "is JSON, but not an index"),
    ],
)
def test_files_of_other_kinds_are_named(content, words, tmp_path):
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(DataError, match=words):
        read(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("m/constants.pkl", "m/data.pkl", "m/code/a.py"), "is a TorchScript program"),
        (("m/archive_format", "m/models/model.json"), "is a torch.export program"),
        (("a.npy", "b.npy"), "is a NumPy .npz file"),
    ],
)
def test_archives_of_other_kinds_are_named(names, words, tmp_path):
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    with pytest.raises(DataError, match=words):
        read(tmp_path / "w.pt")


@pytest.mark.parametrize(
    "beside",
    [
        {"history": [[0.1], [0.1, 0.2]]},
        {"name": "resnet8", "conv1": None},
        {"mean": [[1.0], [1.0, 2.0]]},
    ],
)
def test_lists_of_numbers_beside_weights_are_no_arrays(beside, tmp_path):
    _, _, state = make()
    path = save(tmp_path / "w.pth", {**state, **beside})
    assert_same(adopted(path), state)
    with pytest.raises(DataError, match="is a resnet8: use --model resnet8"):
        adopted(path, "resnet20")


@pytest.mark.parametrize("value", [None, "a", np.float32(3), np.ones(5, np.float32)])
def test_other_things_in_the_place_of_a_weight(value, tmp_path):
    _, _, state = make()
    if isinstance(value, np.float32):
        value = np.ones((), np.float32)
    path = save(tmp_path / "w.pth", {**state, "conv1.weight": value})
    for name in ("resnet8", "resnet20"):
        with pytest.raises(DataError, match="w.pth "):
            adopted(path, name)


def test_copies_of_the_weights_without_the_head_are_no_others(tmp_path):
    _, _, state = make()
    bare = {n: v for n, v in state.items() if not n.startswith("fc")}
    head = {"weight": state["fc.weight"], "bias": state["fc.bias"]}
    path = save(tmp_path / "w.pth", {"model": state, "backbone": bare, "fc": head})
    assert_same(adopted(path), state)
    assert_same(adopted(save(tmp_path / "v.pth", {"a": bare, "fc": head})), state)


def test_of_two_heads_none_is_taken(tmp_path):
    """An example is the head of a probe in addition to the backbone's."""
    _, _, state = make()
    probe = {"head.weight": np.ones((4, 64), np.float32), "head.bias": np.ones(4)}
    probe = {name: value.astype(np.float32) for name, value in probe.items()}
    path = save(tmp_path / "w.pth", {**prefixed("backbone.", state), **probe})
    with pytest.raises(
        DataError, match="ends in 'backbone.fc.weight', .*'head.weight'"
    ):
        adopted(path)


def test_a_normalization_beside_the_weights_is_told(tmp_path, caplog):
    caplog.set_level("INFO")
    _, _, state = make()
    numbers = {"mean": np.float32([0.5, 0.4, 0.3]), "std": np.float32([1, 2, 1])}
    assert_same(adopted(save(tmp_path / "w.pth", {"net": state, **numbers})), state)
    assert "a normalization: use --normalize 0.5,0.4,0.3/1.0,2.0,1.0" in caplog.text
    inside = {f"normalizer.new_{name}": value for name, value in numbers.items()}
    with pytest.raises(DataError, match="normalizes images itself, with 0.5,0.4,0.3/"):
        adopted(save(tmp_path / "w.pth", {**prefixed("model.", state), **inside}))


def test_an_archive_in_an_archive_is_not_unpacked(tmp_path):
    _, _, state = make()
    save(tmp_path / "w.pth", state)
    for inner, outer in (("w.pth", "a.zip"), ("a.zip", "b.zip")):
        with zipfile.ZipFile(tmp_path / outer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(tmp_path / inner, f"x/{inner.replace('.zip', '.pth')}")
    assert_same(adopted(tmp_path / "a.zip"), state)
    with pytest.raises(DataError, match="b.zip: x/a.pth is an archive inside an"):
        read(tmp_path / "b.zip")


def test_a_damaged_archive_is_named(tmp_path):
    _, _, state = make()
    save(tmp_path / "w.pth", state)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tmp_path / "w.pth", "w.pth")
    content = bytearray((tmp_path / "a.zip").read_bytes())
    content[1000:1100] = bytes(100)
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(DataError, match="a.zip is damaged or truncated: "):
        read(tmp_path / "a.zip")


def test_options_that_the_names_do_not_need(tmp_path):
    _, _, state = make()
    path = save(tmp_path / "w.pth", state)
    with pytest.raises(DataError, match="is a plain resnet8: omit the options"):
        adopted(path, model={"shortcut": "conv_bn"})
    _, _, state = make(shortcut="conv")
    path = save(tmp_path / "w.pth", state)
    with pytest.raises(
        DataError, match="is a resnet8: use --model resnet8 --shortcut conv$"
    ):
        adopted(path)


def test_a_folder_whose_files_are_called_custom(tmp_path):
    _, _, state = make()
    save(tmp_path / "custom_resnet8.pth", state)
    assert_same(adopted(tmp_path), state)
