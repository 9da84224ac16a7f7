import json

import pytest

from resnet_jax import files
from resnet_jax.errors import ConfigError


def test_jsonl_leaves_out_an_unfinished_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert files.read_jsonl(path) == []
    path.write_text(json.dumps({"step": 1}) + '\n{"step": 2, "los')
    assert files.read_jsonl(path) == [{"step": 1}]


def test_write_text_is_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"a": 1})
    assert json.loads(path.read_text()) == {"a": 1}
    with pytest.raises(UnicodeEncodeError):
        files.write_text(path, "\ud800")
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_write_text_where_nothing_can_be_written(tmp_path):
    with pytest.raises(ConfigError, match="cannot be written"):
        files.write_text(tmp_path / "missing" / "a.json", "")


def test_a_directory_is_made_and_tried_before_it_is_needed(tmp_path):
    files.check_writable(tmp_path / "a" / "b", "folder", "--output")
    assert (tmp_path / "a" / "b").is_dir() and not list((tmp_path / "a/b").iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="folder .* cannot be written .*--output"):
        files.check_writable(tmp_path / "file" / "x", "folder", "--output")
