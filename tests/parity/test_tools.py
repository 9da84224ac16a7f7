"""Reads files and folders that timm, transformers, Lightning and accelerate write."""

import argparse
import contextlib
import json

import numpy as np
import pytest

import resnet_jax
from resnet_jax import models, training
from resnet_jax.errors import DataError
from resnet_jax.weights import export
from resnet_jax.weights.adopt import adopt
from resnet_jax.weights.read import read

pytest.importorskip("torchvision", reason="parity needs torch and torchvision")
import torch
import torchvision
import twins

pytestmark = [
    pytest.mark.tools,
    pytest.mark.optimized,
    pytest.mark.filterwarnings("ignore"),  # these libraries' own warnings
]

SIDE = 64


def images():
    x = np.random.default_rng(1).normal(size=(4, SIDE, SIDE, 3))
    return x.astype(np.float32)


def logits_of(net):
    with torch.no_grad():
        found = net.eval()(twins.nchw(images(), torch.float32))
    return getattr(found, "logits", found).numpy()


def adopted(path, name="resnet18", key=None, num_classes=10, **options):
    model = models.create_model(name, num_classes=num_classes, **options)
    template = training.variable_shapes(model, (SIDE, SIDE, 3))
    variables, _ = adopt(read(path), template, model, name=name, key=key)
    return np.asarray(model.apply(variables, images(), train=False))


def assert_equal(found, expected, most=1e-5):
    """With 50 layers, each program's rounding errors reach 2e-5."""
    assert np.abs(found - expected).max() <= most * np.abs(expected).max()


def network():
    net = torchvision.models.resnet18(num_classes=10)
    return twins.randomise(net, SIDE).eval()


@pytest.mark.parametrize("name", ["resnet18", "resnet26", "resnext50_32x4d"])
def test_timms_folder_for_the_hub(name, tmp_path, caplog):
    timm = pytest.importorskip("timm", reason="pip install timm")
    net = twins.randomise(timm.create_model(name, num_classes=10), SIDE)
    timm.models.save_for_hf(net, tmp_path)
    if name == "resnet26":
        with pytest.raises(DataError, match="does not fit resnet18"):
            adopted(tmp_path)
        with pytest.raises(DataError, match="holds timm's resnet26, which is not su"):
            resnet_jax.load_pretrained(tmp_path)
        return
    most = 1e-5 if name == "resnet18" else 1e-4
    assert_equal(adopted(tmp_path, name), logits_of(net), most)
    loaded = resnet_jax.load_pretrained(tmp_path)
    found = loaded.model.apply(loaded.variables, images(), train=False)
    assert_equal(np.asarray(found), logits_of(net), most)
    known, shown = net.pretrained_cfg, loaded.preprocessing
    assert (shown.mean, shown.std) == (known["mean"], known["std"])
    assert shown.interpolation == known["interpolation"]
    assert shown.crop == known["input_size"][1]
    assert shown.size == int(shown.crop / known["crop_pct"])


def test_timms_checkpoint_of_a_training(tmp_path):
    timm = pytest.importorskip("timm", reason="pip install timm")
    from timm.utils import CheckpointSaver, ModelEmaV3

    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    average = ModelEmaV3(net, decay=0.9)
    average.module.fc.bias.data += 1
    saver = CheckpointSaver(
        net,
        optimizer,
        args=argparse.Namespace(model="resnet18", lr=0.1),
        model_ema=average,
        checkpoint_dir=str(tmp_path),
        recovery_dir=str(tmp_path),
    )
    saver.save_checkpoint(3, metric=91.5)
    path = tmp_path / "last.pth.tar"
    assert timm.__version__
    with pytest.raises(DataError, match="'state_dict', 'state_dict_ema': choose one"):
        adopted(path)
    assert_equal(adopted(path, key="state_dict"), logits_of(net))
    assert_equal(adopted(path, key="state_dict_ema"), logits_of(average.module))


@pytest.mark.parametrize(("stem", "is_timms"), [(None, True), ("cifar", False)])
def test_timm_reads_what_is_exported(stem, is_timms, tmp_path):
    timm = pytest.importorskip("timm", reason="pip install timm")
    model = models.create_model("resnet18", num_classes=10, stem=stem)
    net = network() if stem is None else twins.make_pair("resnet18", "cifar")[0].eval()
    variables = twins.variables_of(net, model, SIDE)
    info = {
        "model": {
            **{"model": "resnet18", "stem": stem, "skip": True, "norm": "batch"},
            **{"num_classes": 10, "in_channels": 3},
        },
        "dataset": "folder",
        "class_names": list("abcdefghij"),
        "preprocessing": {
            **{"size": 256, "image_size": 224, "interpolation": "bilinear"},
            **{"normalize": "half", "mean": [0.5] * 3, "std": [0.25] * 3},
        },
        "metrics": {"count": 5, "accuracy": 0.5, "accuracy_top5": 0.9, "loss": 1.0},
    }
    export.write(tmp_path / "out", variables, info)
    assert export.is_timms(info["model"]) is is_timms
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert ("architecture" in config) is is_timms
    if not is_timms:
        return
    theirs = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    assert_equal(logits_of(theirs), logits_of(net))
    how = timm.data.resolve_model_data_config(theirs)
    assert (*how["mean"], *how["std"]) == (*(0.5,) * 3, *(0.25,) * 3)
    assert how["crop_pct"] == 224 / 256 and how["interpolation"] == "bilinear"
    assert theirs.pretrained_cfg["label_names"] == list("abcdefghij")


@pytest.mark.parametrize("in_parts", [False, True])
@pytest.mark.parametrize("kind", ["basic", "bottleneck", "stride in the 1x1"])
def test_transformers_folder(kind, in_parts, tmp_path):
    transformers = pytest.importorskip("transformers", reason="pip install it")
    is_basic = kind == "basic"
    config = transformers.ResNetConfig(
        embedding_size=64,
        hidden_sizes=[64, 128, 256, 512] if is_basic else [256, 512, 1024, 2048],
        depths=[2, 2, 2, 2] if is_basic else [3, 4, 6, 3],
        layer_type="basic" if is_basic else "bottleneck",
        downsample_in_bottleneck=kind == "stride in the 1x1",
        num_labels=10,
    )
    net = transformers.ResNetForImageClassification(config)
    twins.randomise(net, SIDE)
    net.save_pretrained(tmp_path, max_shard_size="20MB" if in_parts else "5GB")
    name = "resnet18" if is_basic else "resnet50"
    options = {} if is_basic else {"stride_in_1x1": kind == "stride in the 1x1"}
    most = 1e-5 if is_basic else 1e-4
    assert_equal(adopted(tmp_path, name, **options), logits_of(net), most)
    loaded = resnet_jax.load_pretrained(tmp_path)
    found = loaded.model.apply(loaded.variables, images(), train=False)
    assert_equal(np.asarray(found), logits_of(net), most)


def test_lightnings_checkpoint(tmp_path):
    lightning = pytest.importorskip("lightning", reason="pip install lightning")

    class Classifier(lightning.LightningModule):
        def __init__(self, lr=0.1):
            super().__init__()
            self.save_hyperparameters()
            self.model = network()
            self.loss = torch.nn.CrossEntropyLoss(weight=torch.ones(10))

        def forward(self, x):
            return self.model(x)

        def training_step(self, batch, index):
            x, y = batch
            return self.loss(self(x), y)

        def configure_optimizers(self):
            optimizer = torch.optim.AdamW(self.parameters(), lr=1e-4)
            return [optimizer], [torch.optim.lr_scheduler.MultiStepLR(optimizer, [1])]

    data = torch.utils.data.TensorDataset(
        torch.randn(4, 3, SIDE, SIDE), torch.arange(4)
    )
    trainer = lightning.Trainer(
        max_epochs=1,
        accelerator="cpu",
        default_root_dir=tmp_path,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    net = Classifier()
    trainer.fit(net, torch.utils.data.DataLoader(data, batch_size=4))
    (path,) = tmp_path.rglob("*.ckpt")
    assert_equal(adopted(path), logits_of(net))
    assert_equal(adopted(tmp_path), logits_of(net))  # the run's folder


def test_accelerates_folders(tmp_path):
    accelerate = pytest.importorskip("accelerate", reason="pip install accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    net = network()
    optimizer = torch.optim.Adam(net.parameters())
    net, optimizer = accelerator.prepare(net, optimizer)
    accelerator.save_state(str(tmp_path / "state"))
    accelerator.save_model(net, str(tmp_path / "parts"), max_shard_size="10MB")
    for name in ("state", "parts"):
        assert_equal(adopted(tmp_path / name), logits_of(net))


def test_the_mixin_of_the_hub(tmp_path):
    hub = pytest.importorskip("huggingface_hub", reason="pip install huggingface_hub")

    class Classifier(torch.nn.Module, hub.PyTorchModelHubMixin):
        def __init__(self, num_classes=10):
            super().__init__()
            self.backbone = network()
            self.backbone.fc = torch.nn.Identity()
            self.classifier = torch.nn.Linear(512, num_classes)

        def forward(self, x):
            return self.classifier(self.backbone(x))

    net = Classifier()
    net.save_pretrained(tmp_path)
    assert_equal(adopted(tmp_path), logits_of(net))


def test_a_distributed_checkpoint_is_named(tmp_path):
    import torch.distributed.checkpoint as dcp

    with contextlib.suppress(Warning):
        dcp.save(network().state_dict(), checkpoint_id=str(tmp_path / "dcp"))
    with pytest.raises(DataError, match="is a distributed checkpoint: convert it"):
        read(tmp_path / "dcp")
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    dcp_to_torch_save(str(tmp_path / "dcp"), str(tmp_path / "w.pth"))
    adopted(tmp_path / "w.pth")
