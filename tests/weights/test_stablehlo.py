"""Runs exported StableHLO in JAX without the package, at any batch size."""

import json
import os
import re
import subprocess
import sys

import jax
import numpy as np
import programs
import pytest
from jax import export as jax_export
from programs import NETWORKS, make_info, make_network, own_logits, pixels_of

from resnet_jax.errors import ConfigError, DataError
from resnet_jax.files import file_digest
from resnet_jax.models import create_model
from resnet_jax.weights import stablehlo
from resnet_jax.weights.program import difference


@pytest.fixture
def network():
    return make_network(NETWORKS["cifar stem"](), side=8)


@pytest.mark.process
def test_a_small_program_says_what_its_network_says(network):
    program = jax_export.deserialize(stablehlo.convert(network))
    for count in (10, 3):
        images = network.images[:count]
        found = np.asarray(program.call(images))
        assert found.dtype == np.float32
        assert difference(found, own_logits(network, images)) <= 1e-5


@pytest.mark.process
@pytest.mark.parametrize("name", NETWORKS)
def test_a_program_says_what_its_network_says(name):
    network = make_network(NETWORKS[name]())
    program = jax_export.deserialize(stablehlo.convert(network))
    for count in (10, 3):
        images = network.images[:count]
        found = np.asarray(program.call(images))
        assert difference(found, own_logits(network, images)) <= 1e-5


def test_a_program_is_plain_operations_for_three_platforms(network):
    program = jax_export.deserialize(stablehlo.convert(network))
    assert program.platforms == ("cpu", "cuda", "tpu")
    (images,) = program.in_avals
    assert str(images.shape) == "(batch, 8, 8, 3)"
    text = program.mlir_module()
    assert "stablehlo.convolution" in text
    assert set(re.findall(r"custom_call @(\w+)", text)) <= {"shape_assertion"}


@pytest.mark.process
def test_bfloat16_is_as_near_as_bfloat16_is():
    network = make_network(create_model("resnet8", num_classes=10, dtype="bfloat16"))
    if np.isnan(own_logits(network, network.images)).any():
        # The YNNPACK fusions in jaxlib 0.12.0 do that on CPUs.
        with pytest.raises(DataError, match="model.stablehlo was not written"):
            stablehlo.check(stablehlo.convert(network), network)
        return
    assert 0 < stablehlo.check(stablehlo.convert(network), network) <= 0.05


def test_a_program_that_is_a_little_off_is_refused(network, tmp_path, monkeypatch):
    spoiled = jax.tree.map(lambda x: 1.001 * x, network.variables)
    program = stablehlo.convert(network._replace(variables=spoiled))
    monkeypatch.setattr(stablehlo, "convert", lambda network: program)
    with pytest.raises(DataError, match="model.stablehlo was not written: its logits"):
        stablehlo.write(tmp_path / "folder", network, make_info(network))
    assert not (tmp_path / "folder").exists()


def test_images_of_another_size_are_refused(network):
    program = jax_export.deserialize(stablehlo.convert(network))
    with pytest.raises(ValueError, match=r"expected \(batch, 8, 8, 3\)"):
        program.call(np.zeros((2, 9, 8, 3), np.float32))


def test_a_folder_says_everything(network, tmp_path):
    folder = tmp_path / "folder"
    stablehlo.write(folder, network, make_info(network))
    names = {path.name for path in folder.iterdir()}
    assert names == {"model.stablehlo", "config.json", "README.md"}
    info = json.loads((folder / "config.json").read_text())
    assert info["sha256"] == file_digest(folder / "model.stablehlo")
    assert info["stablehlo"]["input"]["shape"] == ["batch", 8, 8, 3]
    assert info["stablehlo"]["output"]["shape"] == ["batch", 10]
    assert info["class_names"] == list("0123456789") and info["metrics"]["count"] == 40
    card = (folder / "README.md").read_text()
    assert "[batch, 8, 8, 3]" in card and "tags: [" in card and "stablehlo]" in card
    stablehlo.write(folder, network, make_info(network))  # replaces its own file
    info = json.loads((folder / "config.json").read_text())

    (folder / "model.stablehlo").rename(folder / "model.safetensors")
    with pytest.raises(
        ConfigError, match="contains model.safetensors, which has its own config"
    ):
        stablehlo.write(folder, network, make_info(network))
    assert json.loads((folder / "config.json").read_text()) == info


ALONE = """
import sys

for name in ("resnet_jax", "flax"):
    sys.modules[name] = None
import numpy as np

for count in (5, 2):
    pixels = np.load(f"pixels{count}.npy")
    exec(compile(open("code.py").read(), "code.py", "exec"))
    np.save(f"logits{count}.npy", logits)
    try:
        import resnet_jax
    except ImportError:
        print("alone")
"""


@pytest.mark.process
@pytest.mark.parametrize("name", ["imagenet stem", "whitened"])
def test_the_card_s_code_needs_jax_alone(name, tmp_path):
    network = make_network(NETWORKS[name]())
    info = make_info(network)
    stablehlo.write(tmp_path, network, info)
    code = programs.code_of((tmp_path / "README.md").read_text())
    (tmp_path / "code.py").write_text(code)
    for count in (5, 2):
        np.save(tmp_path / f"pixels{count}.npy", pixels_of(info, count)[0])
    environ = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", ALONE], cwd=tmp_path, env=environ, capture_output=True,
        text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "alone\nalone\n"), done.stderr
    for count in (5, 2):
        expected = own_logits(network, pixels_of(info, count)[1])
        found = np.load(tmp_path / f"logits{count}.npy")
        assert difference(found, expected) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "preact_resnet18", "hresnet"])
def test_a_whole_network_is_a_program(name):
    network = make_network(create_model(name, num_classes=10))
    program = jax_export.deserialize(stablehlo.convert(network))
    found = np.asarray(program.call(network.images))
    assert difference(found, own_logits(network, network.images)) <= 1e-5


def test_a_difference_is_a_part_of_the_largest():
    assert difference(np.array([1.0, -4.0]), np.array([1.5, -4.0])) == 0.125
    assert difference(np.zeros(2), np.zeros(2)) == 0
    assert np.isnan(difference(np.array([np.nan, 1.0]), np.array([1.0, 1.0])))
    assert np.isnan(difference(np.array([1.0, 1.0]), np.array([np.nan, 1.0])))


def test_a_network_computes_as_before_when_it_was_exported(network):
    def operations():
        traced = jax.make_jaxpr(lambda x: network.model.apply(
            network.variables, x, train=False
        ))(network.images)  # fmt: skip
        return str(traced)

    before = operations()
    stablehlo.convert(network)
    assert operations() == before and "custom_jvp_call" in before
