"""Runs both scripts as a user does, in processes, on real digits."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from spawn import said

import resnet_jax

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]
TIMES = {"seconds", "images_per_second", "compile_seconds", "startup_seconds"}
SMALL = (
    *("--epochs", "2", "--max-train-samples", "512", "--max-steps", "14"),
    *("--log-every-steps", "1"),
)


def command(script, *args):
    return [sys.executable, str(ROOT / script), *map(str, args)]


def run(script, *args):
    return subprocess.run(command(script, *args), capture_output=True, text=True)


# In one process, which imports the libraries once.
EACH = """
import contextlib, io, json, runpy, sys

for case in json.load(sys.stdin):
    sys.argv, code = case, None
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_path(case[0], run_name="__main__")
        except SystemExit as end:
            code = end.code
    print(json.dumps([code, out.getvalue(), err.getvalue()]))
"""


def run_each(script, *cases):
    """Returns the results of `run` for several lists of arguments."""
    commands = [command(script, *case)[1:] for case in cases]
    done = subprocess.run(
        [sys.executable, "-c", EACH], cwd=ROOT, input=json.dumps(commands),
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    return [
        subprocess.CompletedProcess(args, *json.loads(line))
        for args, line in zip(commands, lines, strict=True)
    ]


def metrics_of(run_dir):
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [{k: v for k, v in r.items() if k not in TIMES} for r in records]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """An undisturbed run of two epochs on digits, the second one short."""
    run_dir = tmp_path_factory.mktemp("runs") / "digits"
    done = run("train.py", "digits", *SMALL, "--workdir", run_dir)
    assert done.returncode == 0, done.stderr
    return run_dir, done


def test_training_prints_a_line_an_epoch(trained):
    run_dir, done = trained
    lines = done.stdout.splitlines()
    assert [line.split()[:4] for line in lines] == [
        ["epoch", "1", "step", "8"],
        ["epoch", "2", "step", "14"],
    ]
    assert said(done.stderr) == []  # no terminal, no bar
    left = {"config.json", "classes.json", "metrics.jsonl", "checkpoints", ".lock"}
    assert set(os.listdir(run_dir)) == left


def test_evaluation_gives_what_training_recorded(trained, tmp_path):
    run_dir, _ = trained
    output = tmp_path / "report.json"
    done = run("evaluate.py", run_dir, "--tta", "--output", output)
    assert done.returncode == 0, done.stderr
    report = json.loads(output.read_text())
    last = metrics_of(run_dir)[-1]
    assert report["accuracy"] == last["test_accuracy"]
    assert report["loss"] == last["test_loss"]
    assert report["count"] == 360 and report["step"] == 14
    assert set(report["class_accuracy"]) == set("0123456789")
    assert report["one_batch"]["count"] == 64
    augmented, final = done.stdout.splitlines()[-2:]
    assert re.fullmatch(r"Acc@1 \S+ Acc@5 \S+ loss \S+ n 360", final)
    tta = report["tta"]
    assert tta["count"] == 360 and tta["loss"] != report["loss"]
    assert augmented.startswith(
        f"test-time augmentation: Acc@1 {100 * tta['accuracy']:.3f} "
    )
    assert float(final.split()[1]) == pytest.approx(
        100 * last["test_accuracy"], abs=1e-3
    )


def test_evaluation_at_another_batch_size_counts_the_same(trained, tmp_path):
    run_dir, _ = trained
    output = tmp_path / "report.json"
    done = run("evaluate.py", run_dir, "--batch-size", 7, "--output", output)
    assert done.returncode == 0, done.stderr
    report, last = json.loads(output.read_text()), metrics_of(run_dir)[-1]
    assert report["accuracy"] == last["test_accuracy"] and report["count"] == 360
    assert report["loss"] == pytest.approx(last["test_loss"], rel=1e-6)


@pytest.mark.slow
def test_digits_reach_97_percent(tmp_path):
    run_dir = tmp_path / "digits"
    done = run("train.py", "digits", "--workdir", run_dir)
    assert done.returncode == 0, done.stderr
    assert metrics_of(run_dir)[-1]["test_accuracy"] >= 0.97


def assert_one_line(done, code, *parts):
    """A UserError's line, and no traceback."""
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in done.stderr
    assert done.stderr.count("\n") == 1


def test_bad_usage_of_train():
    parts = {
        ("resnet99",): "unknown recipe 'resnet99'",
        ("digits", "--learning-rate", 1): "did you mean --lr?",
        ("digits", "--lr", -1): "lr -1.0 is not in",
        ("digits", "--epochs", 0): "epochs 0 is too small",
        ("digits", "--batch-size", "many"): "--batch-size 'many' is not a whole",
        ("digits", "--stem", "big"): "--stem must be one of",
    }
    for done, part in zip(run_each("train.py", *parts), parts.values(), strict=True):
        assert_one_line(done, 2, part)


def test_unknown_names(tmp_path):
    workdir = ("--workdir", tmp_path / "run")
    model, dataset = run_each(
        "train.py",
        ("digits", "--model", "resnet19", *workdir),
        ("digits", "--dataset", "mnist", *workdir),
    )
    assert_one_line(model, 2, "unknown model 'resnet19'", "resnet18")
    assert_one_line(dataset, 2, "unknown data set 'mnist': use one of cifar10")
    assert os.listdir(tmp_path) == []


def test_damaged_data(prepared_dir, tmp_path):
    data_dir = tmp_path / "tfds"
    shutil.copytree(prepared_dir, data_dir)
    workdir = ("--workdir", tmp_path / "run")
    done = run("train.py", "hresnet", "--data-dir", data_dir, *workdir)
    # It says where the data come from, then what is wrong with them.
    assert done.returncode == 3 and "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 2
    assert "is damaged (train images are uint8 [50, 32, 32, 3])" in done.stderr
    assert not (tmp_path / "run").exists()


def test_no_run_to_evaluate(trained, tmp_path):
    half = tmp_path / "half"
    half.mkdir()
    shutil.copy(trained[0] / "config.json", half)
    cases = ((tmp_path / "nowhere",), (), (tmp_path,), (half,))
    nowhere, nothing, empty, begun = run_each("evaluate.py", *cases)
    assert_one_line(nowhere, 2, "nowhere: there is no such directory")
    assert_one_line(nothing, 2, "specify a run directory, or --weights FILE")
    assert_one_line(empty, 2, "is not a run: it has no config.json")
    assert_one_line(begun, 4, "has no checkpoint yet")


def test_a_checkpoint_that_is_not_there_or_of_another_model(trained, tmp_path):
    run_dir, _ = trained
    (tmp_path / "file").touch()
    other = tmp_path / "other"
    shutil.copytree(run_dir, other)
    config = (other / "config.json").read_text()
    (other / "config.json").write_text(config.replace("resnet8", "resnet20"))
    step, best, output, word, model = run_each(
        "evaluate.py",
        (run_dir, "--checkpoint", 7),
        (run_dir, "--checkpoint", "best"),
        (run_dir, "--output", tmp_path / "file" / "report.json"),
        (run_dir, "--checkpoint", "newest"),
        (other,),
    )
    assert_one_line(step, 4, "no checkpoint of step 7, only of 8, 14")
    assert_one_line(best, 4, "--validation-split")
    assert_one_line(output, 2, "file cannot be written", "another --output")
    assert output.stdout == ""
    assert_one_line(word, 2, "last, best or a step")
    missing = "batch_stats.layer1.1.bn1.mean: missing"
    assert_one_line(model, 4, "belongs to another model", missing)


def test_export_then_transfer_from_it(trained, tmp_path):
    """Exports a network, and starts two runs from it, one with cached features."""
    run_dir, _ = trained
    folder = tmp_path / "exported"
    done = run("evaluate.py", run_dir, "--export", folder)
    assert done.returncode == 0, done.stderr
    bare = (folder / "model.safetensors", "--model", "resnet8", "--dataset", "digits")
    bare = ("--weights", *bare, "--normalize", "half")
    for again in run_each("evaluate.py", (folder, "--batch-size", 500), bare):
        assert not again.returncode, again.stderr
        assert again.stdout.splitlines()[-1] == done.stdout.splitlines()[-1]

    common = ("--model", "resnet8", "--dataset", "digits", *SMALL, "--lr", 0.01)
    extra = {"long": ("--no-cache-features",), "cached": ()}
    both = (
        ("probe", "--pretrained", folder, *common, *more, "--workdir", tmp_path / name)
        for name, more in extra.items()
    )
    for done in run_each("train.py", *both):
        assert not done.returncode, done.stderr
        assert "a new fc" in done.stderr
    runs = {name: metrics_of(tmp_path / name) for name in extra}
    for long, cached in zip(runs["long"], runs["cached"], strict=True):
        assert long["test_accuracy"] == cached["test_accuracy"]
        assert long["train_loss"] == pytest.approx(cached["train_loss"], rel=1e-5)
    # The run that saw features alone is a whole network.
    done = run("evaluate.py", tmp_path / "cached", "--output", tmp_path / "r.json")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["accuracy"] == runs["cached"][-1]["test_accuracy"]


def test_bad_transfers(tmp_path):
    expected = {
        ("--pretrained", "none.pth"): (3, "none.pth cannot be read"),
        ("--pretrained", __file__): (3, "is neither a .safetensors nor a .pth file"),
        ("--pretrained", "imagenet"): (2, "resnet8 has no ImageNet weights"),
        ("--freeze", "layer9"): (2, "freeze 'layer9' matches no parameter"),
        ("--backbone-bn", "frozen"): (2, "backbone_bn frozen needs --freeze"),
        ("--cache-features",): (2, "cache_features needs features that stay the same"),
        ("--reset-head",): (2, "reset_head needs --pretrained"),
        ("--dataset", "folder"): (2, "data set folder needs --data-dir"),
        ("--dataset", "folder", "--data-dir", "no"): (3, "no/train is not a folder"),
    }
    workdir = ("--workdir", tmp_path / "run")
    found = run_each("train.py", *(("digits", *args, *workdir) for args in expected))
    for done, (code, part) in zip(found, expected.values(), strict=True):
        assert_one_line(done, code, part)
    assert not (tmp_path / "run").exists()


def test_bad_weights_to_evaluate(tmp_path):
    page = tmp_path / "page.pth"
    page.write_text("<!DOCTYPE html>")
    file, other, model, alone = run_each(
        "evaluate.py",
        ("--weights", "none.pth", "--model", "resnet20"),
        ("--weights", page, "--model", "resnet20"),
        ("--weights", page, "--model", "resnet21"),
        ("--weights", page),
    )
    assert_one_line(file, 3, "none.pth cannot be read")
    assert_one_line(other, 3, "is a web page")
    assert_one_line(model, 2, "unknown model 'resnet21'")
    assert_one_line(alone, 2, "--weights and --model must be")


def test_import_does_not_wake_jax_and_offers_its_names():
    code = "import sys, resnet_jax; assert 'jax' not in sys.modules; dir(resnet_jax)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    for name in resnet_jax.__all__:
        assert getattr(resnet_jax, name) is not None
        assert name in dir(resnet_jax)
    with pytest.raises(AttributeError, match="attribute ResNext"):
        _ = resnet_jax.ResNext


def test_a_platform_that_is_not_there_is_an_error_in_one_line(tmp_path):
    arguments = ("--platform", "cuda", "--workdir", tmp_path / "run")
    done = run("train.py", "digits", *arguments)
    assert done.returncode == 2
    assert "platform cuda cannot be used (" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_batch_that_does_not_divide_names_the_nearest_that_does(tmp_path):
    done = run("train.py", "digits", "--devices", 3, "--workdir", tmp_path / "run")
    assert done.returncode == 2
    assert done.stderr.endswith(
        "by 3 devices: the nearest size that is divisible is 63\n"
    )
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_run_is_scored_on_any_number_of_devices(trained):
    run_dir, _ = trained
    one, four = (
        run("evaluate.py", run_dir, "--devices", n, "--batch-size", 50) for n in (1, 4)
    )
    last = [done.stdout.splitlines()[-1].split() for done in (one, four)]
    assert last[0][:4] == last[1][:4] and last[1][-2:] == ["n", "360"]
    assert abs(float(last[0][5]) - float(last[1][5])) < 1e-4
