"""Every option of a command has an effect, or is refused."""

import pytest

from resnet_jax import fields
from resnet_jax.commands import models, predict
from resnet_jax.commands.evaluate import EvaluateConfig
from resnet_jax.errors import ConfigError
from resnet_jax.report import subject
from resnet_jax.report.options import SubjectConfig

GIVEN = {
    "checkpoint": "best",
    "seed": 3,
    "stem": "cifar",
    "shortcut": "conv_bn",
    "stride_in_1x1": True,
    "bn_eps": 1e-3,
    "in_channels": 1,
    "weights_key": "model_ema",
    "dataset": "digits",
    "data_dir": "/data",
    "normalize": "half",
    "image_size": 8,
    "batch_size": 7,
    "devices": 1,
    "platform": "cpu",
    "tta": True,
    "report": True,
    "robustness": True,
    "predictions": "p.csv",
    "output": "o.json",
    "saliency": True,
    "page": "p.html",
    "export": "e",
    "images": ("a.png",),
}
RUN = {"run": "r"}
WEIGHTS = {"weights": "w", "model": "resnet8"}
OF_WEIGHTS = {"stem", "shortcut", "stride_in_1x1", "in_channels", "weights_key"}
OF_WEIGHTS |= {"bn_eps"}
MODES = {  # a call of evaluate, and flags that have no effect on it
    "run": (RUN, OF_WEIGHTS | {"saliency", "page"}),
    "weights": (WEIGHTS, {"checkpoint", "seed", "report", "saliency", "page"}),
    "images of a run": (
        {**RUN, "images": ("a.png",)},
        OF_WEIGHTS
        | {"batch_size", "tta", "report", "output", "export", "page"}
        | {"robustness", "predictions"},
    ),
    "images by weights": (
        {**WEIGHTS, "images": ("a.png",)},
        {"checkpoint", "seed", "batch_size", "tta", "report", "output", "export"}
        | {"page", "robustness", "predictions"},
    ),
    "compare": ({"compare": ("a", "b")}, {*GIVEN, "run", "weights"} - {"page"}),
}


def test_every_flag_of_evaluate_is_in_the_table():
    names = {one.name for one, _ in fields.flat(EvaluateConfig(run="r"))}
    assert names == {*GIVEN, "run", "weights", "model", "compare"}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("flag", GIVEN)
def test_a_flag_is_taken_or_refused_by_name(mode, flag):
    call, refused = MODES[mode]
    if flag in call:
        return
    if flag in refused:
        with pytest.raises(ConfigError, match=f"--{flag.replace('_', '-')} "):
            EvaluateConfig(**call, **{flag: GIVEN[flag]})
    else:
        EvaluateConfig(**call, **{flag: GIVEN[flag]})


@pytest.mark.parametrize("flag", ["checkpoint", "seed"])
def test_an_exported_folder_has_one_network(flag, tmp_path):
    (tmp_path / "model.safetensors").touch()
    options = SubjectConfig(run=str(tmp_path), **{flag: GIVEN[flag]})
    with pytest.raises(
        ConfigError, match=f"--{flag} applies only to a run, but .* is an ex"
    ):
        subject.load(options)


def test_predict_takes_files_one_by_one():
    options = predict.PredictConfig(run="r", images=("a.png",), batch_size=3)
    with pytest.raises(ConfigError, match="--batch-size applies only to scoring"):
        predict.main(options)


@pytest.mark.parametrize("given", [{"name": "resnet18"}, {"stem": "cifar"}])
def test_a_list_of_networks_wants_nothing_else(given):
    with pytest.raises(ConfigError, match="needs summary"):
        models.main(models.ModelsConfig("list", **given))
