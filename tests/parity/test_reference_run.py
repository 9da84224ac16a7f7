"""Stops and resumes the PyTorch program and ours."""

import pytest

from resnet_jax import files

pytest.importorskip("torch", reason="parity needs torch")
from benchmarks import reference_run

pytestmark = [pytest.mark.optimized, pytest.mark.parity]

TIMES = ("seconds", "images_per_second", "compile_seconds", "startup_seconds")


def figures_of(workdir, program):
    """Returns metrics.jsonl without times."""
    records = files.read_jsonl(workdir / program / "metrics.jsonl")
    return [{k: v for k, v in r.items() if k not in TIMES} for r in records]


@pytest.mark.slow
def test_taken_up_again_gives_what_one_go_gives(
    tmp_path, small_cifar, prepared_dir, capsys
):
    def run(epochs, name):
        reference_run.main(
            reference_run.ReferenceRun(
                epochs=epochs, data_dir=str(prepared_dir), workdir=str(tmp_path / name)
            )
        )

    run(2, "whole")
    run(1, "parts")
    run(2, "parts")
    for program in ("torch", "jax"):
        whole = figures_of(tmp_path / "whole", program)
        assert [record["epoch"] for record in whole] == [1, 2]
        assert figures_of(tmp_path / "parts", program) == whole
    theirs, ours = (figures_of(tmp_path / "whole", name) for name in ("torch", "jax"))
    # Same start and order, and Adam's moments carry over from epoch to epoch.
    for a, b, rel in zip(theirs, ours, (1e-5, 2e-5), strict=True):
        assert b["train_loss"] == pytest.approx(a["train_loss"], rel=rel)
    assert "| 2 | " in capsys.readouterr().out
    assert (tmp_path / "parts" / "loss.png").stat().st_size > 10_000
