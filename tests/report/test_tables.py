import contextlib
import csv
import importlib
import json
import os
import sys
from pathlib import Path

import pytest

from resnet_jax.errors import ConfigError
from resnet_jax.report import tables

COLUMNS = {"name": str, "count": int, "share": float, "right": bool}
ROWS = [
    ['a,b "c"\n', 1, 0.1, True],
    ["Katze 猫", 2, 1e-20, False],
    [os.fsdecode(b"bad\xff"), 3, float("nan"), True],
]
NAMES = ['a,b "c"\n', "Katze 猫", "bad\\xff"]


def write(path, parts):
    with tables.writing(path, COLUMNS) as rows:
        for part in parts:
            rows(part)


def read(path):
    """Reads a file's rows as dictionaries, with other libraries."""
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        kinds = {"true": True, "false": False}
        return [
            {
                **row,
                "count": int(row["count"]),
                "share": float(row["share"]),
                "right": kinds[row["right"]],
            }
            for row in rows
        ]
    if path.suffix == ".json":
        return json.loads(path.read_text(encoding="utf-8"))
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    parquet = importlib.import_module("pyarrow.parquet")
    with path.open("rb") as file:
        return parquet.read_table(file).to_pylist()


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl", ".parquet"])
def test_rows_come_back(suffix, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "_GROUP", 2)
    path = tmp_path / f"p{suffix}"
    write(path, [ROWS[:2], [], ROWS[2:]])
    found = read(path)
    assert [list(row) for row in found] == [list(COLUMNS)] * 3
    assert [row["name"] for row in found] == NAMES
    assert [row["count"] for row in found] == [1, 2, 3]
    assert [row["right"] for row in found] == [True, False, True]
    assert [row["share"] for row in found[:2]] == [0.1, 1e-20]
    nothing = found[2]["share"]  # which JSON lacks
    assert nothing is None if "json" in suffix else nothing != nothing
    write(path, [])
    assert read(path) == []
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl", ".parquet"])
@pytest.mark.parametrize("name", ["a:b", os.fsdecode(b"\xff"), "[0] 猫"])
def test_a_folder_may_have_any_name(name, suffix, tmp_path):
    folder = tmp_path / name
    folder.mkdir()
    write(folder / f"{name}{suffix}", [ROWS])
    assert len(read(folder / f"{name}{suffix}")) == 3


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl", ".parquet"])
def test_after_an_error_what_was_there_stays(suffix, tmp_path):
    path = tmp_path / f"p{suffix}"
    path.write_text("before")
    with pytest.raises(KeyError), tables.writing(path, COLUMNS) as rows:
        rows(ROWS)
        raise KeyError
    assert path.read_text() == "before" and os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl", ".parquet"])
def test_a_disk_that_fills_is_said(suffix, tmp_path, monkeypatch):
    path = tmp_path / f"p{suffix}"

    def fill(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fill)
    with pytest.raises(ConfigError, match=rf"{path} cannot be written .No space left"):
        write(path, [ROWS])
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("suffix", [".csv", ".json", ".jsonl", ".parquet"])
def test_a_row_that_cannot_be_written_is_said(suffix, tmp_path, monkeypatch):
    def full(path, columns):
        def write(rows):
            raise OSError(28, "No space left on device")

        yield write

    monkeypatch.setitem(tables._WRITERS, suffix, contextlib.contextmanager(full))
    with pytest.raises(ConfigError, match="cannot be written .No space left"):
        write(tmp_path / f"p{suffix}", [ROWS])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("p.txt", r"--output .*p.txt has no known suffix: use one of .csv, "),
        ("p", "has no known suffix"),
        ("folder.csv", "is a folder: specify a file"),
        ("file/p.csv", "folder .*file cannot be written to .File exists"),
    ],
)
def test_a_place_that_cannot_be_is_refused_at_once(name, message, tmp_path):
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=message):
        tables.check(tmp_path / name, "--output")


def test_parquet_without_its_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(
        ConfigError, match=r"p.PARQUET needs pyarrow: run `pip install -e "
    ):
        tables.check(tmp_path / "p.PARQUET", "--output")
    tables.check(tmp_path / "new" / "p.CSV", "--output")
    assert (tmp_path / "new").is_dir()
