import runpy
import sys

import pytest

import resnet_jax
from resnet_jax import version
from resnet_jax.commands import COMMANDS, usage
from resnet_jax.commands.evaluate import EvaluateConfig


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("train hresent", "unknown recipe 'hresent': did you mean hresnet?"),
        ("train", "specify a recipe first"),
        ("train --lr 1", "specify a recipe first"),
        ("train digits --epoch 3", "unknown option --epoch: did you mean --epochs?"),
        ("train digits -epochs 3", "unknown option -epochs: did you mean --epochs?"),
        ("train digits --learning_rate 1", "did you mean --lr?"),
        (
            "train digits --qqqq 1",
            "unknown option --qqqq (`resnet-jax train digits --help`",
        ),
        ("train digits --epochs", "--epochs needs a value"),
        ("train digits --epochs x", "--epochs 'x' is not a whole number"),
        ("train digits --lr=x", "--lr 'x' is not a number"),
        ("train digits --optimizer adan", "not 'adan': did you mean adam?"),
        ("train digits --nesterov=1", "--nesterov takes no value"),
        ("train digits foo", "unexpected argument foo"),
        ("evaluate --ttta", "unknown option --ttta: did you mean --tta?"),
        ("evaluate --seed x", "--seed 'x' is not a whole number"),
        ("predict a.png --topk 3", "did you mean --top-k?"),
        ("predict a.png --top-k", "--top-k needs a value"),
        ("compare --pgae x", "did you mean --page?"),
        ("export runs/x out --format pt", "--format must be one of torch, timm, onnx"),
        ("models", "missing {list,summary}"),
        ("models lst", "WHAT must be one of list, summary, not 'lst': did you mean li"),
        ("prepare folder a b --quality x", "--quality 'x' is not a whole number"),
        ("data d --recip x", "did you mean --recipe?"),
        ("doctor --platfrm x", "did you mean --platform?"),
        ("trian", "unknown command 'trian': did you mean train?"),
    ],
)
def test_a_usage_error_is_one_line(line, said, command):
    code, out, err = command(*line.split())
    assert code == 2 and out == ""
    assert said in err and err.count("\n") == 1
    assert "imagenet-v2" not in err and "Config" not in err


@pytest.mark.parametrize("name", COMMANDS)
def test_help_tells_each_default_once(name, command):
    arguments = [name, "digits"] if name == "train" else [name]
    code, out, err = command(*arguments, "--help")
    assert code == 0 and err == ""
    assert "usage: " in out and "(default: None)" not in out and "{None}" not in out


def test_help_lists_the_recipes(command):
    code, out, _ = command("train", "--help")
    assert code == 0 and "  hresnet-plus  " in out and "╭" not in out


def test_a_number_is_no_flag():
    usage.check_flags(EvaluateConfig, ["--seed", "-1", "-inf", "--no-tta"], "x")


def test_a_version_wherever_it_is_asked_for(command):
    assert resnet_jax.__version__ == version.find_version()
    for arguments in (["--version"], ["train", "--version"], ["doctor", "--version"]):
        assert command(*arguments)[:2] == (0, f"resnet-jax {resnet_jax.__version__}\n")


@pytest.mark.parametrize("script", ["train.py", "evaluate.py"])
def test_a_script_tells_its_version(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [script, "--version"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(script, run_name="__main__")
    assert end.value.code == 0
    assert capsys.readouterr().out == f"resnet-jax {resnet_jax.__version__}\n"


def test_a_version_comes_from_the_checkout_first(tmp_path):
    project = '[project]\nname = "resnet-flax-linen"\nversion = "9.9"\n'
    (tmp_path / "pyproject.toml").write_text(project)
    assert version.find_version(tmp_path) == "9.9"
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'other'\n")
    assert version.find_version(tmp_path) != "9.9"
