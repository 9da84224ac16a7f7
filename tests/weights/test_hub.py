import hashlib
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import resnet_jax
from resnet_jax import data, download, files, training
from resnet_jax.errors import ConfigError, DataError
from resnet_jax.weights import convert, hub, pretrained


@pytest.fixture(scope="module")
def imagenet_weights():
    """Returns a random state_dict of resnet18 with 1,000 classes."""
    model = resnet_jax.create_model("resnet18", num_classes=1000)
    shapes = training.variable_shapes(model, (64, 64, 3))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), shapes)
    return resnet_jax.to_torch(variables)


@pytest.fixture
def published(imagenet_weights, tmp_path, monkeypatch):
    """Returns the content of a file of them, published like torchvision's."""
    path = tmp_path / "weights"
    save_file(imagenet_weights, path)
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()[:8]
    monkeypatch.setitem(hub.IMAGENET, "resnet18", f"resnet18-{digest}.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return content


@pytest.fixture
def served(published, monkeypatch):
    """Serves `published` at every URL, and returns the list of requests."""
    asked = []

    def fetch(url, sha256, path, **options):
        asked.append((url, sha256))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(published)

    monkeypatch.setattr(download, "fetch", fetch)
    return asked


@pytest.mark.process
def test_imagenets_weights_are_fetched_once_and_the_head_is_new(
    served, imagenet_weights, caplog
):
    caplog.set_level("INFO")
    model, variables, preprocessing = resnet_jax.load_pretrained(
        "resnet18", num_classes=10
    )
    name = hub.IMAGENET["resnet18"]
    assert served == [(hub.URL + name, name[9:17])]
    assert (files.cache_dir() / name).is_file()
    assert variables["params"]["fc"]["kernel"].shape == (512, 10)
    found = convert.to_torch(variables)["layer4.1.bn2.running_var"]
    np.testing.assert_array_equal(found, imagenet_weights["layer4.1.bn2.running_var"])
    assert preprocessing.size == 256 and preprocessing.crop == 224
    assert preprocessing.mean == (0.485, 0.456, 0.406)
    assert preprocessing.class_names is None and model.num_classes == 10
    assert ", a new fc" in caplog.text

    whole = resnet_jax.load_pretrained("resnet18")
    assert len(served) == 1  # from the cache
    assert whole.variables["params"]["fc"]["kernel"].shape == (512, 1000)
    assert len(whole.preprocessing.class_names) == 1000
    assert whole.preprocessing.class_names[0] == "tench"


def test_torchs_own_cache_serves_too(published, tmp_path, monkeypatch):
    def unreachable(*args, **options):
        raise AssertionError("it was fetched")

    monkeypatch.setattr(download, "fetch", unreachable)
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / hub.IMAGENET["resnet18"]).write_bytes(published)
    assert len(hub.read_weights(hub.locate("imagenet", "resnet18")).value) == 122


def test_a_damaged_cached_file_is_refused(published):
    files.cache_dir().mkdir(parents=True)
    path = files.cache_dir() / hub.IMAGENET["resnet18"]
    path.write_bytes(published[:-1] + b"x")
    with pytest.raises(DataError, match=f"{path} is damaged: its sha256 starts with"):
        hub.read_weights(hub.locate("imagenet", "resnet18"))


def test_offline_it_is_said_which_file_to_put_where(published, monkeypatch):
    def unreachable(*args, **options):
        raise DataError("download.pytorch.org cannot be reached")

    monkeypatch.setattr(download, "fetch", unreachable)
    name = hub.IMAGENET["resnet18"]
    with pytest.raises(DataError) as caught:
        hub.read_weights(hub.locate("imagenet", "resnet18"))
    message = str(caught.value)
    for part in (name, "cannot be reached", hub.URL, str(files.cache_dir())):
        assert part in message
    assert f"sha256 starts with {name[9:17]}" in message and "\n" not in message


@pytest.mark.parity
def test_the_published_names_are_torchvisions():
    torchvision = pytest.importorskip("torchvision", reason="to compare with its own")
    for version, names, source in (
        ("IMAGENET1K_V1", hub.IMAGENET, "imagenet"),
        ("IMAGENET1K_V2", hub.IMAGENET_V2, "imagenet-v2"),
    ):
        for model, name in names.items():
            weights = getattr(torchvision.models.get_model_weights(model), version)
            assert weights.url == hub.URL + name
            how = weights.transforms()
            known = hub.describe(source, hub.files.cache_dir(), model)
            sizes = (how.resize_size[0], how.crop_size[0])
            assert sizes == (known.resize, known.crop)
            assert how.interpolation.value == known.interpolation
            mean, std = data.augment.parse_normalization(known.normalize)
            assert (tuple(how.mean), tuple(how.std)) == (mean, std)


def test_networks_without_weights_are_named():
    with pytest.raises(ConfigError, match="resnet20 has no ImageNet weights, but resn"):
        hub.read_weights(hub.locate("imagenet", "resnet20"))
    with pytest.raises(
        ConfigError, match="resnet99 is not a pretrained network: choose"
    ):
        resnet_jax.load_pretrained("resnet99")


def test_a_folder_that_was_not_exported(tmp_path):
    with pytest.raises(DataError, match="holds no weights file"):
        hub.read_weights(tmp_path)


@pytest.mark.parametrize("reset_head", [False, True])
@pytest.mark.parametrize("num_classes", [10, 7])
def test_the_head_is_kept_where_it_fits(tmp_path, reset_head, num_classes, caplog):
    caplog.set_level("INFO")
    theirs = resnet_jax.create_model("resnet8", num_classes=num_classes)
    start = training.init_variables(theirs, (32, 32, 3), key=jax.random.key(1))
    state_dict = resnet_jax.to_torch(start)
    renamed = {k.replace("fc.", "linear."): v for k, v in state_dict.items()}
    save_file(renamed, tmp_path / "weights.safetensors")
    model = resnet_jax.create_model("resnet8", num_classes=10)
    variables = training.init_variables(model, (32, 32, 3), key=jax.random.key(0))
    adopted = pretrained.begin_from(
        variables,
        model,
        source=str(tmp_path / "weights.safetensors"),
        name="resnet8",
        reset_head=reset_head,
    )
    kept = num_classes == 10 and not reset_head
    expected = (start if kept else variables)["params"]["fc"]["kernel"]
    np.testing.assert_array_equal(adopted["params"]["fc"]["kernel"], expected)
    np.testing.assert_array_equal(
        adopted["params"]["conv1"]["kernel"], start["params"]["conv1"]["kernel"]
    )
    assert ("its linear as fc" if kept else "a new fc") in caplog.text


def describe(folder, **changes):
    """Returns what is known about a folder of timm's resnet18 with `changes`."""
    pretrained_cfg = {
        **{"mean": [0.5] * 3, "std": [0.25] * 3, "crop_pct": 0.95},
        **{"input_size": [3, 224, 224], "interpolation": "bicubic"},
    }
    config = {"architecture": "resnet18", "num_classes": 5}
    own = {name: changes.pop(name) for name in set(changes) & set(config)}
    config |= {**own, "pretrained_cfg": {**pretrained_cfg, **changes}}
    (folder / "config.json").write_text(json.dumps(config))
    return hub.describe(str(folder), folder)


def test_a_folder_of_timm_says_all_of_it(tmp_path):
    found = describe(tmp_path)
    assert found.model.model == "resnet18" and found.num_classes == 5
    assert (found.resize, found.crop, found.interpolation) == (235, 224, "bicubic")
    assert found.normalize == "half" and found.class_names is None
    named = describe(tmp_path, mean=[0.1, 0.2, 0.3])
    assert named.normalize == "0.1,0.2,0.3/0.25,0.25,0.25"
    path = tmp_path / "model.safetensors"
    path.touch()
    assert hub.describe(str(path), path) == named  # the file says it, too
    assert hub.normalization(str(path)) == named.normalize
    assert describe(tmp_path, num_classes=1000).class_names == hub.imagenet_classes()
    assert describe(tmp_path, architecture="resnet50d") is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"input_size": [4, 224, 224], "mean": [0.5] * 4, "std": [1] * 4},
            "4 channels",
        ),
        ({"crop_pct": 1.2}, "crop_pct is 1.2"),
        ({"mean": [123.0] * 3, "std": [58.0] * 3}, "from 0 to 255"),
    ],
)
def test_a_folder_that_cannot_be_followed_is_named(tmp_path, changes, words):
    with pytest.raises(DataError, match=f"{tmp_path}.*config.json.*{words}"):
        describe(tmp_path, **changes)


def test_what_a_folder_does_not_say_is_said(tmp_path, caplog):
    caplog.set_level("INFO")
    found = describe(tmp_path, crop_mode="squash")
    assert (found.resize, found.crop) == (224, 224)
    assert "side to 224 and center-cropping to 224, because config.json" in caplog.text
    assert describe(tmp_path, mean=None).normalize == "imagenet"
    assert "does not specify a normalization: using imagenet" in caplog.text


def test_strides_that_no_name_tells_are_the_folders(tmp_path, monkeypatch):
    config = {
        **{"model_type": "resnet", "layer_type": "bottleneck", "depths": [3, 4, 6, 3]},
        **{"hidden_sizes": [256, 512, 1024, 2048], "num_labels": 5},
        "downsample_in_bottleneck": True,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert hub.describe(str(tmp_path), tmp_path).model.stride_in_1x1
    model = resnet_jax.create_model("resnet50", num_classes=5)
    with pytest.raises(
        ConfigError,
        match="strides in different layers than the model: use --stride-in-1x1",
    ):
        pretrained.begin_from({}, model, source=str(tmp_path), name="resnet50")
    config["downsample_in_bottleneck"] = False
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = resnet_jax.create_model("resnet50", num_classes=5, stride_in_1x1=True)
    with pytest.raises(
        ConfigError,
        match="strides in different layers than the model: use --no-stride-in-1x1",
    ):
        pretrained.begin_from({}, model, source=str(tmp_path), name="resnet50")


def test_normalization_follows_the_weights():
    assert hub.normalization(None) is None  # the data's own
    assert hub.normalization("imagenet") == "imagenet"
    assert hub.normalization("some/file.pth") == "imagenet"
