import hashlib
import subprocess
import sys
from collections import OrderedDict
from functools import partial

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file
from spawn import ROOT

import resnet_jax
from resnet_jax import training
from resnet_jax.errors import DataError
from resnet_jax.weights import adopt, pth, published, read


@pytest.fixture(scope="module")
def variables():
    model = resnet_jax.create_model("resnet8", num_classes=10)
    init = partial(training.init_variables, model, (32, 32, 3))
    return jax.jit(init)(key=jax.random.key(1))


def draw(name):
    """Returns random variables of a model, and their shapes."""
    model = resnet_jax.create_model(name, num_classes=10)
    shapes = training.variable_shapes(model, (32, 32, 3))
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: rng.normal(size=x.shape).astype(x.dtype), shapes
    ), shapes


@pytest.fixture(scope="module")
def state_dict(variables):
    rng = np.random.default_rng(0)
    return {
        name: rng.normal(size=x.shape).astype(np.float32) if x.ndim else x
        for name, x in resnet_jax.to_torch(variables).items()
    }


DEEP = ("resnet101", "resnet152", "resnet110", "wrn28_10", "wide_resnet50_2")
LARGE = ("resnext101_64x4d", "resnext101_32x8d", "wide_resnet101_2")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=[pytest.mark.process] * (name in DEEP)
            + [pytest.mark.slow] * (name in LARGE),
        )
        for name in resnet_jax.list_models()
    ],
)
def test_every_model_goes_out_and_in_bit_for_bit(name):
    start, shapes = draw(name)
    out = resnet_jax.to_torch(start)
    back = resnet_jax.from_torch(out, shapes)
    jax.tree.map(np.testing.assert_array_equal, start, back)
    assert out.keys() == resnet_jax.to_torch(back).keys()
    assert sum(k.endswith("num_batches_tracked") for k in out) == sum(
        k.endswith("running_mean") for k in out
    )


def test_layouts_are_pytorchs(variables):
    out = resnet_jax.to_torch(variables)
    kernel = variables["params"]["layer2.0"]["conv1"]["kernel"]
    assert out["layer2.0.conv1.weight"].shape == (32, 16, 3, 3)
    assert out["layer2.0.conv1.weight"][5, 2, 0, 1] == kernel[0, 1, 2, 5]
    assert out["fc.weight"].shape == (10, 64)
    assert out["bn1.running_var"].shape == (16,)
    assert out["bn1.num_batches_tracked"].dtype == np.int64


def test_values_take_the_templates_dtype(state_dict, variables):
    halves = {k: v.astype(np.float16) for k, v in state_dict.items() if v.ndim}
    adopted = resnet_jax.from_torch(halves, variables)
    leaf = adopted["params"]["conv1"]["kernel"]
    assert leaf.dtype == jnp.float32 and isinstance(leaf, jax.Array)
    whole = {**state_dict, "conv1.weight": np.zeros((16, 3, 3, 3), np.int32)}
    with pytest.raises(DataError, match="conv1.weight is int32, not floating"):
        resnet_jax.from_torch(whole, variables)


def test_skipped_modules_keep_the_templates_values(state_dict, variables):
    other = {**state_dict, "fc.weight": np.zeros((1000, 64), np.float32)}
    adopted = resnet_jax.from_torch(other, variables, skip=("fc",))
    np.testing.assert_array_equal(
        adopted["params"]["fc"]["kernel"], variables["params"]["fc"]["kernel"]
    )
    np.testing.assert_array_equal(
        adopted["params"]["bn1"]["bias"], state_dict["bn1.bias"]
    )
    without = {k: v for k, v in state_dict.items() if not k.startswith("fc.")}
    resnet_jax.from_torch(without, variables, skip=("fc",))


def test_what_does_not_fit_is_listed_with_both_shapes(state_dict, variables):
    wrong = {f"extra{i}.weight": np.zeros(1, np.float32) for i in range(7)}
    wrong |= {k: v for k, v in state_dict.items() if not k.startswith("layer3")}
    wrong["fc.bias"] = np.zeros(1000, np.float32)
    with pytest.raises(DataError) as caught:
        resnet_jax.from_torch(wrong, variables)
    message = str(caught.value)
    assert "\n" not in message
    assert "10 missing (" in message and message.count("layer3") == 5
    assert "7 unexpected (extra0.weight, extra1.weight" in message
    assert "extra4.weight, ...)" in message and "extra5" not in message
    assert "1 misshapen (fc.bias [1000] instead of [10])" in message


@pytest.mark.parametrize("classifier", ["linear", "classifier", "head"])
def test_other_names_of_the_classifier_are_recognised(
    state_dict, variables, classifier, caplog
):
    caplog.set_level("INFO")
    renamed = {k.replace("fc.", f"{classifier}."): v for k, v in state_dict.items()}
    adopted = resnet_jax.from_torch(renamed, variables)
    bias = renamed[f"{classifier}.bias"]
    np.testing.assert_array_equal(adopted["params"]["fc"]["bias"], bias)
    assert f"{classifier} is read as fc" in caplog.text


def test_a_shortcut_is_a_downsample(caplog):
    variables, _ = draw("resnet18")
    out = resnet_jax.to_torch(variables)
    renamed = {k.replace("downsample", "shortcut"): v for k, v in out.items()}
    assert renamed.keys() != out.keys()
    back = resnet_jax.from_torch(renamed, variables)
    jax.tree.map(np.testing.assert_array_equal, back, variables)


def arrays_only(state_dict):
    return {k: np.ascontiguousarray(v) for k, v in state_dict.items()}


def test_safetensors_are_read(state_dict, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(arrays_only(state_dict), path)
    found = resnet_jax.read_state_dict(path)
    assert found.keys() == state_dict.keys()
    for name, value in state_dict.items():
        np.testing.assert_array_equal(found[name], value)


def test_bfloat16_survives(tmp_path, variables, state_dict):
    small = {k: v.astype(ml_dtypes.bfloat16) for k, v in state_dict.items() if v.ndim}
    save_file(small, tmp_path / "model.safetensors")
    found = resnet_jax.read_state_dict(tmp_path / "model.safetensors")
    adopted = resnet_jax.from_torch(found, variables)
    expected = small["fc.bias"].astype(np.float32)
    np.testing.assert_array_equal(adopted["params"]["fc"]["bias"], expected)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "model_state_dict"])
def test_wrappers_and_prefixes_come_off_and_it_is_said(
    tmp_path, monkeypatch, caplog, wrapper, prefix
):
    caplog.set_level("INFO")
    inner = OrderedDict({f"{prefix}fc.bias": np.ones(2, np.float32)})
    content = inner if wrapper is None else {"epoch": 3, wrapper: inner, "best": 91.2}
    path = tmp_path / "a.pth"
    path.write_bytes(pth.ZIP_MAGIC)
    monkeypatch.setattr(read, "_read_zip", lambda path, is_inside: content)
    assert list(resnet_jax.read_state_dict(path)) == ["fc.bias"]
    for word in filter(None, (wrapper, *prefix.replace(".", ". ").split())):
        assert word in caplog.text


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "is empty"),
        (b"\n<!DOCTYPE html><html>", "is a web page"),
        (b"<html lang='en'>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "is a Git LFS pointer"),
        (b"\x89PNG" + bytes(100), "is neither a .safetensors nor a .pth file"),
        (pth.ZIP_MAGIC + bytes(100), "is damaged or truncated: "),
        (pth.LEGACY_MAGIC + bytes(100), "is damaged or truncated: "),
        (bytes([200]) + bytes(7) + b'{"a":', "is damaged or truncated: "),
    ],
)
def test_what_is_no_weights_file_is_named_in_one_line(tmp_path, content, part):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(DataError, match=part) as caught:
        resnet_jax.read_state_dict(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert caught.value.exit_code == 3


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="cannot be read .No such file"):
        resnet_jax.read_state_dict(tmp_path / "none.pth")
    with pytest.raises(DataError, match="holds no weights file"):
        resnet_jax.read_state_dict(tmp_path)


@pytest.mark.parametrize("length", [4, 500, -1])
def test_truncated_safetensors(state_dict, tmp_path, length):
    path = tmp_path / "model.safetensors"
    save_file(arrays_only(state_dict), path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(DataError, match="damaged or truncated|neither"):
        resnet_jax.read_state_dict(path)


def test_a_published_name_is_held_against_the_content(
    state_dict, tmp_path, monkeypatch
):
    save_file(arrays_only(state_dict), tmp_path / "a")
    content = bytearray((tmp_path / "a").read_bytes())
    digest = hashlib.sha256(content).hexdigest()[:8]
    path = tmp_path / f"net-{digest}.safetensors"
    monkeypatch.setitem(published.IMAGENET, "resnet18", path.name)
    path.write_bytes(content)
    assert resnet_jax.read_state_dict(path).keys() == state_dict.keys()
    content[-3] ^= 1  # in the middle of a number, where nothing else would notice
    path.write_bytes(content)
    with pytest.raises(
        DataError, match=f"its sha256 starts with [0-9a-f]+, not {digest}"
    ):
        resnet_jax.read_state_dict(path)


@pytest.mark.parametrize("name", ["resnet18-20240115.pth", "net-deadbeef.safetensors"])
def test_another_name_may_end_in_a_date_or_the_number_of_a_run(
    state_dict, tmp_path, caplog, name
):
    caplog.set_level("INFO")
    save_file(arrays_only(state_dict), tmp_path / name)
    assert resnet_jax.read_state_dict(tmp_path / name).keys() == state_dict.keys()
    assert f"{name}: the digits in its name differ from its sha256" in caplog.text
    digest = hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
    caplog.clear()
    (tmp_path / name).rename(tmp_path / f"net-{digest[:10]}.pth")
    resnet_jax.read_state_dict(tmp_path / f"net-{digest[:10]}.pth")
    assert "digits" not in caplog.text


def test_contents_that_are_no_state_dict(tmp_path, monkeypatch):
    path = tmp_path / "a.pth"
    path.write_bytes(pth.ZIP_MAGIC)
    for content, part in (([1], "holds a list"), ({"epoch": 1}, "holds no tensors")):
        monkeypatch.setattr(read, "_read_zip", lambda *_, content=content: content)
        with pytest.raises(DataError, match=part):
            resnet_jax.read_state_dict(path)


@pytest.mark.process
def test_torch_is_never_imported(tmp_path, state_dict):
    save_file(arrays_only(state_dict), tmp_path / "model.safetensors")
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import resnet_jax\n"
        f"resnet_jax.read_state_dict({str(tmp_path / 'model.safetensors')!r})\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    assert adopt.read_state_dict is resnet_jax.read_state_dict


def test_neither_direction_shares_memory(one_block):
    model = resnet_jax.create_model(one_block, num_classes=5)
    variables = training.init_variables(model, (8, 8, 3), key=jax.random.key(0))
    before = jax.tree.map(np.array, variables)
    state_dict = resnet_jax.to_torch(variables)
    again = resnet_jax.from_torch(state_dict, variables)
    for array in state_dict.values():
        array += 1  # as optimizer.step() does with tensors of the same memory
    for tree in (variables, again):
        jax.tree.map(np.testing.assert_array_equal, tree, before)
