"""Reads files of torch.save, and writes state_dicts that torch loads."""

import collections

import jax
import numpy as np
import pytest

import resnet_jax
from resnet_jax import training
from resnet_jax.errors import DataError
from resnet_jax.weights import hub

pytest.importorskip("torchvision", reason="parity needs torch and torchvision")
import torch
import twins

pytestmark = [pytest.mark.optimized, pytest.mark.parity]


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_array_equal(found[name], value)


LARGE = ("resnext101_64x4d", "resnext101_32x8d", "wide_resnet101_2")
NAMES = [
    pytest.param(name, marks=[pytest.mark.slow] * (name in LARGE))
    for name in resnet_jax.list_models()
]


@pytest.mark.parametrize("name", NAMES)
def test_torch_to_flax_to_torch_is_bit_exact(name):
    twin, make = twins.make_pair(name)
    start = twins.state_dict_of(twin)
    template = training.variable_shapes(make(np.float32), (32, 32, 3))
    back = resnet_jax.to_torch(resnet_jax.from_torch(start, template))
    zeros = {k: np.zeros_like(v) for k, v in start.items() if "tracked" in k}
    assert_same(back, {**start, **zeros})
    tensors = {k: torch.from_numpy(v.copy()) for k, v in back.items()}
    twin.load_state_dict(tensors, strict=True)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrap", [False, True])
def test_what_torch_saves_is_read_bit_for_bit(tmp_path, zipped, wrap):
    twin, _ = twins.make_pair("resnet8")
    content = twin.state_dict()
    if wrap:
        content = {
            "epoch": 3,
            "state_dict": torch.nn.DataParallel(twin).state_dict(),
            "best_prec1": torch.tensor(91.0),
        }
    path = tmp_path / "net.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert_same(resnet_jax.read_state_dict(path), twins.state_dict_of(twin))


@pytest.mark.parametrize("zipped", [True, False])
def test_every_dtype_parameters_and_views(tmp_path, zipped):
    base = torch.arange(24.0).reshape(4, 6)
    content = collections.OrderedDict(
        {
            "parameter": torch.nn.Parameter(base.clone()),
            "transposed": base.t(),
            "slice": base[1:3, ::2],
            "shared": base,
            "scalar": torch.tensor(7),
            "empty": torch.zeros(0, 3),
            **{
                str(dtype): base.to(dtype)
                for dtype in (torch.float64, torch.float16, torch.int32, torch.int8)
            },
            "bool": base > 3,
        }
    )
    path = tmp_path / "net.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    found = resnet_jax.read_state_dict(path)
    assert_same(found, {k: v.detach().numpy() for k, v in content.items()})
    torch.save({"w": base.bfloat16()}, path, _use_new_zipfile_serialization=zipped)
    values = resnet_jax.read_state_dict(path)["w"].astype(np.float32)
    np.testing.assert_array_equal(values, base.bfloat16().float().numpy())


class Evil:
    def __reduce__(self):
        import os

        return (os.system, ("touch ran",))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("content", [Evil(), torch.nn.Linear(2, 3)])
def test_what_is_more_than_tensors_is_passed_over_and_not_run(
    tmp_path, monkeypatch, zipped, content
):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "net.pth"
    weights = {"w": torch.ones(2), "x": content}
    torch.save(weights, path, _use_new_zipfile_serialization=zipped)
    assert list(resnet_jax.read_state_dict(path)) == ["w"]
    torch.save({"x": content}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(DataError, match="holds (a whole module, an object|no tensors)"):
        resnet_jax.read_state_dict(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_truncation_is_found_wherever_it_is(tmp_path, zipped):
    twin, _ = twins.make_pair("resnet8")
    path = tmp_path / "net.pth"
    torch.save(twin.state_dict(), path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for length in np.linspace(100, len(whole) - 1, 12, dtype=int):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match="damaged or truncated"):
            resnet_jax.read_state_dict(path)


def test_a_flipped_bit_that_torch_accepts_is_found(tmp_path):
    twin, _ = twins.make_pair("resnet8")
    path = tmp_path / "net.pth"
    torch.save(twin.state_dict(), path)
    content = bytearray(path.read_bytes())
    kernel = twin.fc.weight.detach().numpy().tobytes()
    content[content.index(kernel) + 2] ^= 1
    path.write_bytes(content)
    torch.load(path, weights_only=True)
    with pytest.raises(DataError, match="Bad CRC"):
        resnet_jax.read_state_dict(path)


def test_torchvisions_own_network_takes_what_is_exported(tmp_path):
    """Follows the model card: load_file, load_state_dict(strict=True), equal logits."""
    import torchvision
    from safetensors.torch import load_file

    from resnet_jax.weights import export

    model = resnet_jax.create_model("resnet18", num_classes=3)
    variables = training.init_variables(model, (64, 64, 3), key=jax.random.key(0))
    rng = np.random.default_rng(0)
    variables["batch_stats"] = jax.tree.map(
        lambda x: rng.uniform(0.5, 1.5, x.shape).astype(np.float32),
        variables["batch_stats"],
    )
    info = {
        "model": {
            **{"model": "resnet18", "stem": None},
            **{"num_classes": 10, "in_channels": 3},
        },
        "dataset": "folder",
        "class_names": ["a", "b", "c"],
        "preprocessing": {
            "size": 73,
            "image_size": 64,
            "interpolation": "bilinear",
            "mean": [0.5],
            "std": [0.5],
        },
        "metrics": {"count": 3, "accuracy": 1.0, "accuracy_top5": 1.0, "loss": 0.1},
    }
    export.write(tmp_path, variables, info)
    card = (tmp_path / "README.md").read_text()
    code = card.split("```python")[2].split("```")[0]
    code = code.replace("model.safetensors", str(tmp_path / "model.safetensors"))
    scope = {}
    exec(code, scope)
    twin = scope["model"].eval()
    images = rng.normal(size=(2, 64, 64, 3)).astype(np.float32)
    with torch.inference_mode():
        expected = twin(twins.nchw(images, torch.float32)).numpy()
    found = model.apply(variables, images, train=False)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert isinstance(twin, torchvision.models.ResNet) and load_file


def test_classes_of_imagenet_are_those_of_torchvisions_weights():
    from torchvision.models import ResNet18_Weights

    categories = ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
    assert hub.imagenet_classes() == tuple(categories)
