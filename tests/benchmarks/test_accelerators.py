"""The analysis of a compiled program's text, and the options."""

import jax
import pytest

from benchmarks import chips
from benchmarks.accelerators import (
    Accelerators,
    Task,
    chip_of,
    described,
    lower,
    measure,
    tasks,
)
from benchmarks.programs import Array, Program
from resnet_jax.errors import ConfigError

# Two fusions, of which one reorders a map; a copy into the chip; a collective that is
# begun and ended; a loop, whose body is counted once.
TEXT = """HloModule jit_step, is_scheduled=true

%fused_a (p.1: bf16[4,8,8,16]) -> bf16[4,16,8,8] {
  %p.1 = bf16[4,8,8,16]{3,2,1,0} parameter(0)
  ROOT %t = bf16[4,16,8,8]{3,2,1,0} transpose(%p.1), dimensions={0,3,1,2}
}

%fused_b (p.2: bf16[4,8,8,16]) -> (f32[16], f32[4,8,8,16]) {
  %p.2 = bf16[4,8,8,16]{3,2,1,0} parameter(0)
  %c = f32[4,8,8,16]{3,2,1,0} convert(%p.2)
  %k = bf16[3,3,16,16]{3,2,1,0} constant({...})
  %v = bf16[4,8,8,16]{3,2,1,0} convolution(%p.2, %k), window={size=3x3}
  %s = f32[16]{0} reduce(%c, %v), dimensions={0,1,2}, to_apply=%fused_a
  ROOT %r = (f32[16]{0}, f32[4,8,8,16]{3,2,1,0}) tuple(%s, %c)
}

%body (s.1: (s32[], f32[16])) -> (s32[], f32[16]) {
  %s.1 = (s32[], f32[16]{0}) parameter(0)
  ROOT %n = (s32[], f32[16]{0}) fusion(%s.1), kind=kLoop, calls=%fused_a
}

ENTRY %main (x: bf16[4,8,8,16]) -> f32[16] {
  %x = bf16[4,8,8,16]{3,2,1,0:T(8,128)(2,1)} parameter(0)
  %near = (bf16[4,8,8,16]{3,2,1,0:T(8,128)(2,1)S(1)}, bf16[4,8,8,16]{3,2,1,0:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%x)
  %near.1 = bf16[4,8,8,16]{3,2,1,0:T(8,128)(2,1)S(1)} copy-done(%near)
  %a = bf16[4,16,8,8]{3,2,1,0} fusion(%near.1), kind=kLoop, calls=%fused_a
  %b = (f32[16]{0:S(1)}, f32[4,8,8,16]{3,2,1,0}) fusion(%x), kind=kOutput, calls=%fused_b, metadata={op_name="a(b)"}
  %b.0 = f32[16]{0:S(1)} get-tuple-element(%b), index=0
  %conv = (bf16[4,8,8,16]{3,2,1,0}, u8[64]{0}) custom-call(%x, %x), custom_call_target="__cudnn$convForward"
  %begun = ((f32[16]{0}), (f32[16]{0})) all-reduce-start(%b.0), channel_id=1, to_apply=%fused_a
  %ended = f32[16]{0} all-reduce-done(%begun)
  %loop = (s32[], f32[16]{0}) while(%begun), condition=%fused_a, body=%body
  ROOT %out = f32[16]{0} get-tuple-element(%loop), index=1
}
"""  # noqa: E501
MAP = 4 * 8 * 8 * 16


def test_a_program_is_read():
    program = Program(TEXT)
    opcodes = [kernel.opcode for kernel in program.kernels()]
    expected = ["copy-start", "copy-done", "fusion", "fusion", "custom-call"]
    assert opcodes == [*expected, "all-reduce-start", "all-reduce-done", "fusion"]
    assert program.collectives() == [("all-reduce", 64)]
    found = [(c.opcode, c.results[0].dtype) for c in program.convolutions()]
    assert found == [("convolution", "bf16"), ("custom-call", "bf16")]
    (moved,) = program.moved_maps(MAP)
    assert moved.name == "%a" and program.moved_maps(MAP + 1) == []
    assert [array.shape for array in program.maps(MAP, "f32")] == [(4, 8, 8, 16)]
    # Not the copy, whose result is on the chip: but its pair has both.
    assert len(program.maps(MAP)) == 5


def test_the_bytes_of_main_memory_by_hand():
    copied = 2 * MAP  # read; what is written is on the chip
    reordered = 2 * MAP  # written
    reduced = 2 * MAP + 4 * MAP  # read, and written but for the sums
    convolved = 2 * 2 * MAP + 2 * MAP + 64
    summed = 2 * 64  # its operand is on the chip
    looped = 2 * (4 + 64)
    total = copied + reordered + reduced + convolved + summed + looped
    assert Program(TEXT).memory_bytes() == total


def test_bytes_of_an_array():
    assert Array("bf16", (2, 3), (1, 0), False).num_bytes == 12
    assert Array("pred", (5,), (0,), False).num_bytes == 5
    assert Array("f8e4m3fn", (4,), (0,), False).num_bytes == 4
    assert Array("s32", (), (), False).num_bytes == 4


def test_tasks_are_those_asked_for():
    cfg = Accelerators(
        recipes=("fast",), targets=("h100",), kinds=("train",), remat=True
    )
    found = [(task.name, task.contestant, task.is_recipe) for task in tasks(cfg)]
    own = [("resnet50", name, False) for name in ("ours", "flax", "flax-norm")]
    assert found == [*own, ("fast", "ours", True)]
    chosen, shape, num_classes = described(
        Task("h100", *found[0][:1], False, "", ""), cfg
    )
    assert (shape, num_classes) == ((224, 224, 3), 1000)
    assert chosen.model.dtype == "bfloat16" and chosen.model.remat
    chosen, shape, _ = described(Task("h100", "fast", True, "ours", "train"), cfg)
    assert chosen.optim.optimizer == "muon" and chosen.model.model == "resnet9"
    assert shape == (32, 32, 3) and chosen.augment.crop_padding == 2


def test_targets():
    assert chips.parse("v5e") == (chips.CHIPS["v5e"], "2x2")
    assert chips.parse("v5e:4x8")[1] == "4x8"
    assert chips.parse("h100:8")[1] == "1x1x8"
    # H100's memory is of 3.35 TB/s, at which 989 TFLOP/s are 295 a byte.
    assert round(chips.CHIPS["h100"].flops / chips.CHIPS["h100"].bandwidth) == 295


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": ("h1000",)}, "unknown chip 'h1000': use one of v4, v5e"),
        ({"targets": ("h100:2x2",)}, "a positive number of GPUs must follow the colon"),
        ({"targets": ("h100:0",)}, "a positive number of GPUs must follow the colon"),
        ({"targets": ("here", "h100")}, "`here` cannot be combined with other targets"),
        ({"recipes": ("slow",)}, "unknown recipe 'slow': use one of digits"),
        ({"batch_per_chip": 0}, "batch_per_chip 0 is too small"),
    ],
)
def test_what_cannot_be_asked_for(options, message):
    with pytest.raises(ConfigError, match=message):
        Accelerators(**options)


@pytest.mark.process
@pytest.mark.parametrize(
    ("recipe", "kind"), [("hresnet", "train"), ("digits", "evaluate")]
)
def test_a_program_runs_where_there_is_a_device(recipe, kind):
    cfg = Accelerators(batch_per_chip=8, dtype="float32", seconds=0.05)
    task = Task("here", recipe, True, "ours", kind)
    lowered = lower(task, cfg, jax.devices(), "cpu")
    compiled = lowered.stage.compile()
    assert 0 < measure(compiled, lowered, cfg) < 60_000
    if kind == "evaluate":
        # The model's flops are the compiler's but for what is no convolution.
        flops = compiled.cost_analysis()["flops"]
        assert 0.7 * flops < lowered.model_flops < 1.3 * flops


@pytest.mark.parametrize(
    ("name", "reason"), [("json", "is a folder"), ("text", "there is no folder")]
)
def test_a_place_that_cannot_be_written_to(name, reason, tmp_path):
    path = tmp_path if name == "json" else tmp_path / "no" / "where"
    with pytest.raises(ConfigError, match=reason):
        Accelerators(**{name: path})


def test_a_device_whose_peaks_are_unknown_is_refused():
    with pytest.raises(
        ConfigError, match="cpu is not a known chip: use one of v4, v5e"
    ):
        chip_of(jax.devices()[0])
