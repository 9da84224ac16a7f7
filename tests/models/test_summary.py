import re

import numpy as np
import pytest
from PIL import Image

import resnet_jax
from resnet_jax.report import diagram


# torchvision's published multiply-adds (GFLOPS in the tables of its weights).
@pytest.mark.parametrize(
    ("name", "params", "macs"),
    [
        ("resnet18", "11,689,512", 1.814),
        ("resnet34", "21,797,672", 3.664),
        ("resnet50", "25,557,032", 4.089),
    ],
)
def test_totals_are_torchvisions(name, params, macs):
    model = resnet_jax.create_model(name, num_classes=1000)
    lines = resnet_jax.summarize(model, (224, 224, 3)).splitlines()
    assert params in lines[-2]
    assert lines[-1].endswith(f"{macs:.3f} G multiply-adds")


def test_rows_name_layers_shapes_and_counts():
    model = resnet_jax.create_model("hresnet", num_classes=10)
    rows = [
        line.split() for line in resnet_jax.summarize(model, (32, 32, 3)).splitlines()
    ]
    by_name = {row[0]: row[1:] for row in rows}
    # 3 * 3 * 3 weights and a bias for each of 64 channels, at 32 * 32 pixels
    assert by_name["b1.conv1"] == ["Conv", "32x32x64", "1,792", f"{27 * 64 * 1024:,}"]
    assert by_name["b1.bn1"] == ["BatchNorm", "32x32x64", "128", "0"]
    assert by_name["fc3"] == ["Linear", "10", "5,130", "5,120"]
    assert len({len(row) for row in rows[2:-3]}) == 1


def test_blocks_say_how_they_are_joined():
    model = resnet_jax.create_model("resnet18", num_classes=10, stem="cifar")
    blocks = resnet_jax.models.structure(model, (32, 32, 3)).blocks
    assert [b.name for b in blocks][:3] == ["layer1.0", "layer1.1", "layer2.0"]
    assert [b.shortcut for b in blocks][:3] == ["identity", "identity", "conv_bn"]
    assert blocks[2].input == (32, 32, 64) and blocks[2].output == (16, 16, 128)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("resnet20", {}, {"identity", "pad"}),
        ("resnet20", {"skip": False}, {"none"}),
        ("resnet18", {"norm": "none"}, {"identity", "conv"}),
        ("hresnet", {}, {"conv"}),
    ],
)
def test_the_diagram_has_a_row_for_each_kind_of_block(
    name, options, expected, tmp_path
):
    model = resnet_jax.create_model(name, num_classes=10, **options)
    found = resnet_jax.models.structure(model, (32, 32, 3))
    assert {b.shortcut for b in found.blocks} == expected
    rows = diagram.list_rows(found)
    assert {shortcut for _, _, shortcut in rows if shortcut} == expected
    shown = "\n".join(title for title, _, _ in rows)
    counts = [int(n) for n in re.findall(r"(\d+) x BasicBlock", shown)]
    assert sum(counts) == len(found.blocks)
    diagram.draw(model, (32, 32, 3), tmp_path / "structure.png")
    assert np.asarray(Image.open(tmp_path / "structure.png")).std() > 10


def boxes_of(name, **options):
    model = resnet_jax.create_model(name, num_classes=10, **options)
    rows = diagram.list_rows(resnet_jax.models.structure(model, (32, 32, 3)))
    return {
        title.split(":")[0]: [text.split("\n")[0] for text, _ in boxes]
        for title, boxes, _ in rows
    }


def test_what_lies_between_stages_has_its_row():
    rows = boxes_of("resnet9", width=4, whiten=True)
    assert list(rows) == ["stem", "layer1", "layer2 and layer3", "layer3", "head"]
    assert rows["stem"][:4] == ["whiten", "conv1", "bn1", "ReLU"]
    assert rows["layer2 and layer3"] == ["conv", "bn", "ReLU"] * 2
    assert rows["head"] == ["fc"]


def test_pre_activation_begins_with_what_others_end_with(tmp_path):
    rows = boxes_of("preact_resnet18")
    assert rows["stem"] == ["conv1"]
    assert rows["layer1"] == ["bn1", "ReLU", "conv1", "bn2", "ReLU", "conv2"]
    assert rows["head"] == ["bn", "ReLU", "fc"]
    assert boxes_of("resnet20")["stem"] == ["conv1", "bn1", "ReLU"]
    rows = boxes_of("preact_resnet18", norm="none")
    assert rows["stem"] == ["conv1"]
    assert rows["layer1"] == ["ReLU", "conv1", "ReLU", "conv2"]
    assert rows["head"] == ["ReLU", "fc"]


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("name", ["resnet20", "resnet50", "preact_resnet18"])
def test_only_pre_activation_blocks_do_not_end_with_relu(name, norm):
    model = resnet_jax.create_model(name, num_classes=10, norm=norm)
    rows = diagram.list_rows(resnet_jax.models.structure(model, (32, 32, 3)))
    ends = {diagram.ends_with_relu(boxes) for _, boxes, shortcut in rows if shortcut}
    assert ends == {name != "preact_resnet18"}


@pytest.mark.parametrize(
    "name, pooling",
    [
        ("resnet8", "average"),
        ("preact_resnet18", "average"),
        ("resnet9", "max"),
        ("hresnet", None),
    ],
)
def test_global_pooling_precedes_the_classifier_in_the_diagram(
    name, pooling, tmp_path, monkeypatch
):
    drawn = []
    list_rows = diagram.list_rows

    def watched(*args):
        drawn.append(list_rows(*args))
        return drawn[-1]

    monkeypatch.setattr(diagram, "list_rows", watched)
    model = resnet_jax.create_model(name, num_classes=10)
    diagram.draw(model, (32, 32, 3), tmp_path / "structure.png")
    title, boxes, _ = drawn[0][-1]
    assert title.startswith("head")
    pooled = [text for text, kind in boxes if kind == "Pooling"]
    assert pooled == ([f"global\n{pooling}\npooling"] if pooling else [])
    assert boxes[-1][1] == "Linear"
    assert not pooling or boxes[-2][1] == "Pooling"
