"""Compares runs in a text table and on an HTML page with results and curves."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resnet_jax.errors import ConfigError
from resnet_jax.fields import flat
from resnet_jax.report import curves, origin, repeat
from resnet_jax.report.page import Content, Panels, Table, write
from resnet_jax.run.directory import CONFIG, METRICS, read_run
from resnet_jax.run.logs import Record, read_metrics


def compare(run_dirs: Sequence[str], page: Path) -> str:
    """Writes a page that compares runs, and returns its tables as text.

    The page shows the last and best metrics, the training times, the fields in which
    the configurations differ, the commands that repeat the runs, and the curves. A
    folder that contains only metrics.jsonl, such as one written by a PyTorch program,
    can be compared as well, but has no configuration to show.

    Raises:
      ConfigError: if a folder is not a run, or the page cannot be written.
    """
    records: dict[str, list[Record]] = {}
    fields: dict[str, dict[str, Any]] = {}
    commands: list[tuple[str, str]] = []
    for name in run_dirs:
        run_dir = Path(name)
        records[name] = read_metrics(run_dir, of_ours=False)
        if not records[name]:
            raise ConfigError(
                f"{run_dir} has no completed epochs in {METRICS}: train the run first"
            )
        fields[name] = {}
        if (run_dir / CONFIG).exists():
            cfg = read_run(run_dir)
            commands.append((name, repeat.command(cfg)))
            kept = [
                pair for pair in flat(cfg) if pair[0].metadata.get("resume") != "free"
            ]
            fields[name] = {one.name: value for one, value in kept}
    header, results, differing = ["", *records], _results(records), _differing(fields)
    with tempfile.TemporaryDirectory() as scratch:
        sections: dict[str, list[Content]] = {
            "Results": [
                Table(header, results, "Metrics of each run"),
                origin.card(),
            ],
            "Configuration": _configuration(header, differing, fields, commands),
            "Curves": [Panels(curves.plot_runs(records, Path(scratch)))],
        }
        write(page, "Comparison of runs", sections)
    return _text([header, *differing, *results])


def _configuration(
    header: list[str],
    rows: list[list[str]],
    fields: dict[str, dict[str, Any]],
    commands: list[tuple[str, str]],
) -> list[Content]:
    contents: list[Content] = []
    if rows:
        caption = "Fields in which the configurations differ"
        contents.append(Table(["field", *header[1:]], rows, caption))
    elif sum(map(bool, fields.values())) > 1:
        contents.append("The configurations are the same.")
    without = [name for name, own in fields.items() if not own]
    if without:
        contents.append(f"Runs without a {CONFIG}: {', '.join(without)}.")
    if commands:
        caption = "Commands that repeat the training"
        contents.append(Table(("run", "command"), commands, caption))
    return contents


def _differing(fields: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Returns a row for each field in which the configurations differ."""
    rows = [
        [name, *(str(own.get(name, "-")) for own in fields.values())]
        for name in dict.fromkeys(name for own in fields.values() for name in own)
    ]
    return [row for row in rows if len({*row[1:]} - {"-"}) > 1]


def _results(records: dict[str, list[dict[str, Any]]]) -> list[list[str]]:
    """Returns a row for each metric, with a column for each run."""
    rows: list[list[str]] = []

    def row(label: str, show: Any) -> None:
        rows.append([label, *(show(own) for own in records.values())])

    row("epochs done", lambda r: str(r[-1]["epoch"]))
    row("train loss, last", lambda r: f"{r[-1]['train_loss']:.4f}")
    row("test loss, last", lambda r: f"{r[-1]['test_loss']:.4f}")
    row("test %, last", lambda r: f"{100 * r[-1]['test_accuracy']:.2f}")

    def best(part: str) -> Any:
        key = f"{part}_accuracy"

        def show(own: list[dict[str, Any]]) -> str:
            scored = [record for record in own if key in record]
            if not scored:
                return "-"
            top = max(scored, key=lambda record: record[key])
            return f"{100 * top[key]:.2f} (epoch {top['epoch']})"

        return show

    row("test %, best", best("test"))
    if any("val_accuracy" in own[-1] for own in records.values()):
        row("validation %, best", best("val"))
    row("minutes", lambda r: f"{sum(record['seconds'] for record in r) / 60:.1f}")
    row("images/s, last", lambda r: f"{r[-1]['images_per_second']:.0f}")
    return rows


def _text(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(x.ljust(w) for x, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
