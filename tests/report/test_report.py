import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from resnet_jax import fields
from resnet_jax.commands import compare, evaluate, predict, train
from resnet_jax.commands.compare import CompareConfig
from resnet_jax.commands.evaluate import EvaluateConfig
from resnet_jax.commands.predict import PredictConfig
from resnet_jax.errors import CheckpointError, ConfigError, DataError
from resnet_jax.report import figures
from resnet_jax.run import restore
from resnet_jax.weights.pretrained import load_pretrained

FIGURES = {
    "loss", "accuracy", "confusion", "mistakes", "reliability", "filters", "features",
    "batchnorm", "structure",
}  # fmt: skip


_TRAINED = []


@pytest.fixture
def run_dir(digits_run, tmp_path):
    """A copy of a run that is trained once."""
    if not _TRAINED:
        _TRAINED.append(digits_run(epochs=2, validation_split=0.2)[1])
    return shutil.copytree(_TRAINED[0], tmp_path / "trained")


def test_a_report_shows_the_run_and_a_browser_opens_it(run_dir, tmp_path, capsys):
    output = tmp_path / "figures.json"
    evaluate.main(EvaluateConfig(run=str(run_dir), report=True, output=str(output)))
    folder = run_dir / "report"
    said = capsys.readouterr().out
    assert f"report: {folder / 'index.html'}" in said
    names = {p.stem for p in folder.glob("*.png")}
    assert names - {"right"} == FIGURES
    text = (folder / "index.html").read_text(encoding="utf-8")
    num_figures = len(list(folder.glob("*.png")))
    assert text.count("<figure>") == num_figures
    assert text.count("data:image/png;base64,") >= num_figures  # and mistakes
    assert '<th scope="row">validation_split</th><td>0.2</td>' in text
    printed = json.loads(output.read_text())
    saved = json.loads((folder / "report.json").read_text())
    assert saved["accuracy"] == printed["accuracy"] and saved["count"] == 40
    assert saved["nll"] == pytest.approx(printed["loss"], rel=1e-5)
    for name in ("balanced_accuracy", "macro_f1"):
        assert saved[name] == pytest.approx(printed[name], rel=1e-9)
        assert f"<dd>{100 * saved[name]:.2f} %</dd>" in text
    assert '<th scope="row">best by val</th>' in text
    assert text.count("<table") == text.count("<caption>") >= 6
    rows = re.findall(r"<tbody>(.*?)</tbody>", text)
    assert all(row.count("<tr>") == row.count('<tr><th scope="row">') for row in rows)
    dimmed = re.findall(r'<div class="image photos"[^>]*><img alt="(\S+)', text)
    assert dimmed == [
        *("Mistakes,", *(["Correct"] if "right" in names else []), "Filters", "The")
    ]
    top1 = f"<dt>top-1 accuracy</dt><dd>{100 * saved['accuracy']:.2f} %</dd>"
    assert top1 in text
    top5 = float(re.search(r"Acc@5 (\S+)", said.splitlines()[-1])[1])
    assert f"<dt>top-5 accuracy</dt><dd>{top5:.2f} %</dd>" in text
    assert "<dd>40 images, test split</dd>" in text
    assert "<dt>training command</dt><dd>python train.py " in text
    recalls = {row["name"]: row["recall"] for row in saved["classes"]}
    for name, accuracy in printed["class_accuracy"].items():
        assert recalls[name] == pytest.approx(accuracy or 0.0)

    # No console error, and no network request.
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("the page is right; no Chromium here to open it in")
    log = tmp_path / "netlog.json"
    done = subprocess.run(
        [
            *(browser, "--headless", "--no-sandbox", "--disable-gpu"),
            *("--enable-logging=stderr", f"--log-net-log={log}"),
            *(f"--user-data-dir={tmp_path / 'profile'}", "--window-size=390,800"),
            *("--virtual-time-budget=2000", "--dump-dom"),
            *("--disable-background-networking", "--disable-component-update"),
            (folder / "index.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("<img ") == text.count("<img ")
    assert "CONSOLE" not in done.stderr
    asked = set(re.findall(r'"url":"(https?://[^"]*)"', log.read_text()))
    errands = ("google", "gvt1.com")  # the browser's own
    assert not [url for url in asked if not any(name in url for name in errands)]


def test_files_are_classified_and_explained(run_dir, tmp_path, capsys):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (50, 80, 3), np.uint8)).save(
        tmp_path / "a.png"
    )
    (tmp_path / "bad.jpg").write_text("<html>")
    paths = tuple(str(tmp_path / n) for n in ("bad.jpg", "a.png", "none.png"))
    with pytest.raises(
        DataError, match=r"2 of 3 files cannot be read: .*bad.jpg.*none.png"
    ):
        predict.main(PredictConfig(run=str(run_dir), images=paths, saliency=True))
    lines = capsys.readouterr().out.splitlines()
    assert lines[-7] == paths[1]
    found = [line.split() for line in lines[-6:-1]]
    shares = [float(row[0]) for row in found]
    assert shares == sorted(shares, reverse=True) and 30 < sum(shares) <= 100.02
    assert all(row[1] == "%" and row[2] in "0123456789" for row in found)
    saved = run_dir / "saliency" / "0-a.png"
    assert lines[-1].strip() == str(saved)
    assert np.asarray(Image.open(saved)).std() > 10


@pytest.mark.process
def test_runs_are_compared(digits_run, run_dir, tmp_path, capsys, caplog):
    _, other = digits_run(epochs=1, dropout=0.25)
    foreign = tmp_path / "torch"
    foreign.mkdir()
    shutil.copy(other / "metrics.jsonl", foreign)
    capsys.readouterr()
    names = tuple(map(str, (run_dir, other, foreign)))
    page = tmp_path / "page.html"
    compare.main(CompareConfig(names, page=str(page)))
    printed = capsys.readouterr().out
    rows = {
        row[0]: row[1:]
        for row in (re.split(r"\s{2,}", line) for line in printed.splitlines())
    }
    assert rows["dropout"] == ["0.0", "0.25", "-"]
    assert rows["epochs done"] == ["2", "1", "1"]
    last = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])
    assert rows["test %, last"][0] == f"{100 * last['test_accuracy']:.2f}"
    assert rows["test %, last"][1] == rows["test %, last"][2]
    assert "lr" not in rows and "workdir" not in rows
    text = page.read_text(encoding="utf-8")
    results, configuration, _ = (part for part in text.split("<section ")[1:])
    row = f'<th scope="row">test %, last</th><td>{rows["test %, last"][0]}</td>'
    assert row in results and "<dt>command</dt>" in results
    rows = re.findall(r'<th scope="row">(.*?)</th><td>(.*?)</td>', configuration)
    *differing, first, second = [name for name, _ in rows]
    assert (first, second) == names[:2]
    assert rows[-1][1].startswith("python train.py ")
    assert "--dropout 0.25 " in rows[-1][1] and f"--workdir {other}" in rows[-1][1]
    assert differing == ["dropout", "validation_split", "epochs"]
    row = '<th scope="row">dropout</th><td>0.0</td><td>0.25</td><td>-</td>'
    assert row in configuration
    assert f"<p>Runs without a config.json: {foreign}.</p>" in configuration
    assert text.count("data:image/png") == 3
    evaluate.main(EvaluateConfig(compare=names, page=str(page)))  # its old name
    assert capsys.readouterr().out == printed and "compare RUNS" in caplog.text
    with pytest.raises(ConfigError, match=r"has no completed epochs in metrics\.jsonl"):
        compare.main(CompareConfig((str(tmp_path),), page=str(page)))


def test_a_comparison_says_when_nothing_differs(run_dir, tmp_path):
    shutil.copytree(run_dir, tmp_path / "again")
    page = tmp_path / "page.html"
    names = str(run_dir), str(tmp_path / "again")
    compare.main(CompareConfig(names, page=str(page)))
    assert "<p>The configurations are the same.</p>" in page.read_text("utf-8")
    compare.main(CompareConfig(names[:1], page=str(page)))
    assert "The configurations" not in page.read_text("utf-8")


def test_class_names_come_with_the_run(run_dir):
    path = run_dir / "classes.json"
    assert json.loads(path.read_text()) == list("0123456789")
    path.write_text('["a", "b"]')
    with pytest.raises(
        CheckpointError, match="arrays differ; the first is params.fc.bias"
    ):
        evaluate.main(EvaluateConfig(run=str(run_dir)))
    path.write_text('{"a": 1}')
    with pytest.raises(ConfigError, match="not a list of names"):
        evaluate.main(EvaluateConfig(run=str(run_dir)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compare": ("a",), "run": "b"}, "--compare takes run directories"),
        (
            {"weights": "w", "model": "resnet8", "report": True},
            "--report is for runs only",
        ),
        ({"run": "a", "saliency": True}, "--saliency needs --images"),
        (
            {"run": "a", "images": ("b",), "tta": True},
            "--tta applies only to scoring: omit it or --images",
        ),
        ({"compare": ("a",), "tta": True}, "--tta cannot be combined with --compare"),
    ],
)
def test_options_that_do_not_go_together(options, message):
    with pytest.raises(ConfigError, match=message):
        EvaluateConfig(**options)


@pytest.mark.process
def test_a_whitened_network_has_its_report_and_its_export(
    digits_run, tmp_path, capsys, monkeypatch
):
    def save(figure, path):  # all but the structure are drawn for other runs, too
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((1, 1, 3), np.uint8)).save(path)

    monkeypatch.setattr(figures, "save_figure", save)
    cfg, workdir = digits_run(
        **{"model": "resnet9", "width": 2, "whiten": True, "ema_decay": 0.5},
        **{"epochs": 1, "max_train_samples": 64},
    )
    exported = tmp_path / "exported"
    options = {"report": True, "export": str(exported)}
    evaluate.main(EvaluateConfig(str(workdir), **options))
    last = capsys.readouterr().out.splitlines()[-1]
    assert (workdir / "report" / "structure.png").exists()
    evaluate.main(EvaluateConfig(str(exported)))
    assert capsys.readouterr().out.splitlines()[-1] == last

    # No other data change the axes.
    again = fields.replace(
        cfg, workdir=str(tmp_path / "again"), pretrained=str(exported), lr=0.0,
        max_train_samples=32,
    )  # fmt: skip
    train.main(again)
    kernels = [
        load_pretrained(exported).variables["batch_stats"]["whiten"]["kernel"],
        state_of(tmp_path / "again")["batch_stats"]["whiten"]["kernel"],
    ]
    np.testing.assert_array_equal(*kernels)


def state_of(run_dir):
    with restore.reading(run_dir) as manager:
        return manager.restore(manager.latest_step())["state"]
