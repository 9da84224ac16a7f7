"""Exports ONNX graphs, and tests the check before one is written."""

import json

import numpy as np
import programs
import pytest
from programs import NETWORKS, make_info, make_network, own_logits, pixels_of

from resnet_jax.errors import DataError
from resnet_jax.files import file_digest
from resnet_jax.layers import pool
from resnet_jax.models import create_model
from resnet_jax.weights import onnx as onnx_graph
from resnet_jax.weights.program import difference

REASON = "pip install -e '.[onnx]' brings it"
jax2onnx = pytest.importorskip("jax2onnx", reason=REASON)
onnx = pytest.importorskip("onnx", reason=REASON)
onnxruntime = pytest.importorskip("onnxruntime", reason=REASON)

pytestmark = pytest.mark.onnx  # jax2onnx requires an older orbax than is installed


@pytest.fixture
def network():
    return make_network(NETWORKS["imagenet stem"]())


def check_refused(network, tmp_path, part):
    """Checks the message, and that nothing is written."""
    folder = tmp_path / "folder"
    with pytest.raises(DataError, match=part) as refused:
        onnx_graph.write(folder, network, make_info(network))
    assert "\n" not in str(refused.value) and not folder.exists()


@pytest.mark.parametrize("name", NETWORKS)
def test_a_graph_says_what_its_network_says(name):
    network = make_network(NETWORKS[name]())
    graph = onnx_graph.convert(network)
    assert onnx_graph.check(graph, network) <= 1e-5
    session = onnxruntime.InferenceSession(graph)
    for count in (10, 1):
        images = network.images[:count]
        feed = {"images": images.transpose(0, 3, 1, 2)}
        (found,) = session.run(["logits"], feed)
        assert difference(found, own_logits(network, images)) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "preact_resnet18", "hresnet"])
def test_a_whole_network_is_a_graph(name):
    network = make_network(create_model(name, num_classes=10))
    assert onnx_graph.check(onnx_graph.convert(network), network) <= 1e-5


def test_a_folder_says_everything(network, tmp_path, monkeypatch):
    folder, info = tmp_path / "folder", make_info(network)
    onnx_graph.write(folder, network, info)
    names = {path.name for path in folder.iterdir()}
    assert names == {"model.onnx", "config.json", "README.md"}
    said = json.loads((folder / "config.json").read_text())
    assert said.items() >= info.items()
    assert said["sha256"] == file_digest(folder / "model.onnx")
    assert said["onnx"]["input"] == {"name": "images", "shape": ["batch", 3, 32, 32]}
    assert 0 < said["onnx"]["difference"] <= 1e-5
    assert said["onnx"]["versions"]["onnxruntime"] == onnxruntime.__version__

    graph = onnx.load(folder / "model.onnx")
    onnx.checker.check_model(graph, full_check=True)
    assert graph.opset_import[0].version == said["onnx"]["opset"] == 18

    def described(values):
        return [
            (
                value.name,
                value.type.tensor_type.elem_type,
                [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim],
            )
            for value in values
        ]

    float32 = onnx.TensorProto.FLOAT
    assert described(graph.graph.input) == [("images", float32, ["batch", 3, 32, 32])]
    assert described(graph.graph.output) == [("logits", float32, ["batch", 10])]

    pixels, images = pixels_of(info, 4)
    monkeypatch.chdir(folder)
    names = {"pixels": pixels}
    exec(programs.code_of((folder / "README.md").read_text()), names)
    assert difference(names["logits"], own_logits(network, images)) <= 1e-5


def test_a_network_in_bfloat16_is_one_in_float32(tmp_path):
    network = make_network(create_model("resnet8", num_classes=10, dtype="bfloat16"))
    onnx_graph.write(tmp_path, network, make_info(network))
    exact = network._replace(model=create_model("resnet8", num_classes=10))
    graph = (tmp_path / "model.onnx").read_bytes()
    assert onnx_graph.check(graph, exact) <= 1e-5


def test_a_pool_without_its_padding_is_refused(network, tmp_path, monkeypatch):
    def forgetful(x):
        edge = (1, 1)
        return pool.nn.max_pool(
            x, window_shape=(3, 3), strides=(2, 2), padding=(edge, edge)
        )

    monkeypatch.setattr(pool, "_max_pool_of_padded", forgetful)
    graph = onnx.load_from_string(onnx_graph.convert(network))
    (node,) = (node for node in graph.graph.node if node.op_type == "MaxPool")
    if any(one.name == "pads" and any(one.ints) for one in node.attribute):
        pytest.skip("this jax2onnx has the padding")
    check_refused(
        network, tmp_path, r"model.onnx was not written: .* by \d.\de-0[12] relative to"
    )


def test_a_weight_that_is_a_little_off_is_refused(network, tmp_path, monkeypatch):
    right = onnx_graph.convert(network)

    def spoiled(factor):
        graph = onnx.load_from_string(right)
        tensor = max(graph.graph.initializer, key=lambda one: np.prod(one.dims))
        array = onnx.numpy_helper.to_array(tensor).copy()
        array *= factor
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
        return graph.SerializeToString()

    onnx_graph.check(spoiled(1), network)
    for factor in (1.01, np.nan):
        monkeypatch.setattr(onnx_graph, "convert", lambda _, by=factor: spoiled(by))
        check_refused(network, tmp_path, "to the largest logit at a batch size of 10, ")


def test_a_graph_for_one_batch_size_is_refused(network, tmp_path, monkeypatch):
    to_onnx = jax2onnx.to_onnx

    def fixed(function, inputs, **options):
        (shape,) = inputs
        return to_onnx(function, [(10, *shape[1:])], **options)

    monkeypatch.setattr(jax2onnx, "to_onnx", fixed)
    check_refused(network, tmp_path, "onnxruntime cannot run it")


def test_a_graph_right_at_one_batch_size_alone_is_refused(
    network, tmp_path, monkeypatch
):
    session = onnx_graph._session

    def spoiled(graph):
        run = session(graph)
        return lambda images: run(images) * (1 if len(images) == 10 else 1.01)

    monkeypatch.setattr(onnx_graph, "_session", spoiled)
    check_refused(network, tmp_path, "by 1.0e-02 relative to the largest logit at a")


def test_what_jax2onnx_cannot_convert_is_one_line(network, tmp_path, monkeypatch):
    def broken(*args, **options):
        raise NotImplementedError("no plugin for it\nand more")

    monkeypatch.setattr(jax2onnx, "to_onnx", broken)
    check_refused(network, tmp_path, "cannot convert the network .no plugin for it.")
