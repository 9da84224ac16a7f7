import json
import os

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
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match="folder cannot be written"):
        files.write_text(tmp_path / "folder", "b")
    assert set(tmp_path.iterdir()) == {path, tmp_path / "folder"}
    files.write_text(path, "caf\udcff\u00e9")  # a name in another encoding
    assert path.read_text(encoding="utf-8") == "caf\\xff\u00e9"


def test_write_text_where_nothing_can_be_written(tmp_path):
    with pytest.raises(ConfigError, match="cannot be written"):
        files.write_text(tmp_path / "missing" / "a.json", "")


def test_a_directory_is_made_and_tried_before_it_is_needed(tmp_path):
    files.check_writable(tmp_path / "a" / "b", "folder", "--output")
    assert (tmp_path / "a" / "b").is_dir() and not list((tmp_path / "a/b").iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="folder .* cannot be written .*--output"):
        files.check_writable(tmp_path / "file" / "x", "folder", "--output")


def test_what_a_killed_process_left_goes_after_an_hour(tmp_path):
    old, new = tmp_path / ".resnet_jax-old", tmp_path / ".resnet_jax-new"
    for path in (old, new):
        path.mkdir()
        (path / "half").touch()
    os.utime(old, (0, 0))
    with files.scratch(tmp_path) as folder:
        assert os.path.dirname(folder) == str(tmp_path)
        assert not old.exists() and new.exists()
    assert not os.path.exists(folder)
    files.remove_scratch(tmp_path)
    assert list(tmp_path.iterdir()) == []
