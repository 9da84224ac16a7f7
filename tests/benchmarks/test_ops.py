import re

import pytest

from benchmarks import ops


@pytest.mark.process
@pytest.mark.filterwarnings("ignore:builtin type event_stats:DeprecationWarning")
def test_the_parts_of_a_step(capsys):
    ops.main(ops.Ops(model="resnet8", batch_size=16, steps=1))
    out = capsys.readouterr().out
    assert out.startswith("resnet8, batch 16")
    found = dict(re.findall(r"^\| (\w+ \| [\w ]+) \| (\d+) \|$", out, re.MULTILINE))
    for part in ("forward", "backward", "kernel gradient"):
        assert int(found[f"Conv | {part}"]) > 0
    assert "BatchNorm | backward" in found


@pytest.mark.parametrize(
    ("path", "kind", "part"),
    [
        ("jit(step)/jvp(ResNet)/layer1.0/conv2/conv", "Conv", "forward"),
        ("jit(step)/transpose(jvp(ResNet))/layer2.0/bn1/mul", "BatchNorm", "backward"),
        ("transpose(x)/b1/downsample/kernel_gradient/dot", "Conv", "kernel gradient"),
        ("jvp(ResNet)/layer2.0/downsample.0/conv", "Conv", "forward"),
        ("jvp(ResNet)/layer2.0/downsample.1/mul", "BatchNorm", "forward"),
        ("jvp(HResNet)/fc1/dot_general", "Linear", "forward"),
        ("jit(step)/add", "other", "forward"),
        ("", "unnamed", "forward"),
    ],
)
def test_what_an_operation_is_of(path, kind, part):
    assert (ops.kind_of(path), ops.part_of(path)) == (kind, part)
