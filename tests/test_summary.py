import pytest

import resnet_jax


# torchvision's published counts of multiply-adds (GFLOPS of its weights' tables).
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
    # 3 * 3 * 3 weights and a bias for each of 64 channels, at 32 * 32 places
    assert by_name["b1.conv1"] == ["Conv", "32x32x64", "1,792", f"{27 * 64 * 1024:,}"]
    assert by_name["b1.bn1"] == ["BatchNorm", "32x32x64", "128", "0"]
    assert by_name["fc3"] == ["Linear", "10", "5,130", "5,120"]
    assert len({len(row) for row in rows[2:-3]}) == 1
