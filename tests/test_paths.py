import os
from pathlib import Path

import pytest
from configs import make_config

from resnet_jax import files, paths
from resnet_jax.commands.command_line import parse_recipe
from resnet_jax.commands.evaluate import EvaluateConfig
from resnet_jax.errors import ConfigError


@pytest.fixture
def no_home(monkeypatch):
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    for name in ("RESNET_JAX_CACHE", "XDG_CACHE_HOME", "TFDS_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)


def test_a_tilde_is_a_home_where_a_shell_has_it_so(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert paths.expand("~") == "/home/me"
    assert paths.expand("~/a") == "/home/me/a"
    for path in ("a/~", "a~", "", "a:b", "/a//b", "C:/a", "://a", "1://a"):
        assert paths.expand(path) == path


@pytest.mark.parametrize("path", ["~no-such-user", "~no-such-user/a"])
def test_a_home_of_nobody_is_refused(path):
    with pytest.raises(ConfigError, match="~no-such-user.*no such home folder"):
        paths.expand(path)


def test_nobody_s_home_is_refused_where_there_is_none(no_home):
    assert not paths.has_home()
    assert paths.expand("a") == "a"
    with pytest.raises(ConfigError, match="~/a: no such home.*set HOME"):
        paths.expand("~/a")


@pytest.mark.parametrize("url", ["gs://b/a", "file:///a", "s3://b", "GS://b", "a+b://"])
def test_a_url_is_no_path(url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = [
        lambda: paths.expand(url),
        lambda: make_config(workdir=url),
        lambda: make_config(data_dir=url),
        lambda: make_config(pretrained=url),
        lambda: EvaluateConfig(run=url),
        lambda: EvaluateConfig(run="a", images=("b", url)),
        lambda: EvaluateConfig(run="a", output=url),
        lambda: parse_recipe(None, ["digits", "--workdir", url]),
    ]
    for option in options:
        with pytest.raises(ConfigError, match="is a URL, but only local"):
            option()
    assert not list(tmp_path.iterdir())


def test_names_of_files_become_text():
    assert paths.as_text("cafe\u0301") == paths.as_text("caf\u00e9") == "caf\u00e9"
    name = os.fsdecode(b"a\xff\xe9")
    assert paths.as_text(name) == paths.shown(name) == r"a\xff\xe9"
    assert paths.shown("e\u0301 \ud800") == "e\u0301 \\ud800"


def test_paths_are_kept_as_typed_or_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    cfg = make_config(data_dir="data/../a", workdir="runs/a")
    assert cfg.data.data_dir == str(tmp_path / "a")
    assert cfg.run.workdir == "runs/a"
    cfg = make_config(data_dir="~/data", workdir="~/run")
    assert (cfg.data.data_dir, cfg.run.workdir) == ("/home/me/data", "/home/me/run")
    options = EvaluateConfig(run="~/run", images=("~/a.png", "b.png"))
    assert options.run == "/home/me/run"
    assert options.images == ("/home/me/a.png", "b.png")


def test_pretrained_is_a_name_or_a_path_as_it_was_typed():
    """The same command resumes after the run and its weights have moved."""
    for name in ("imagenet", "w.pth"):
        assert make_config(pretrained=name).transfer.pretrained == name
    found = make_config(pretrained="~/w.pth").transfer.pretrained
    assert found == os.path.expanduser("~/w.pth")


def test_without_a_home_there_is_no_cache_unless_it_is_named(no_home, monkeypatch):
    with pytest.raises(FileNotFoundError, match="no home folder: set HOME"):
        files.cache_dir()
    monkeypatch.setenv("RESNET_JAX_CACHE", "/cache")
    assert files.cache_dir() == Path("/cache")
