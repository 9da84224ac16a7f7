import dataclasses
import json
from pathlib import Path

import pytest

from resnet_jax import config, config_json, options
from resnet_jax.config import Config
from resnet_jax.errors import ConfigError
from resnet_jax.recipes import RECIPES


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lr", -0.1),
        ("lr", float("nan")),
        ("lr", float("inf")),
        ("momentum", 1.0),
        ("weight_decay", -1.0),
        ("label_smoothing", 1.0),
        ("validation_split", 1.0),
        ("epochs", 0),
        ("max_steps", 0),
        ("batch_size", 0),
        ("eval_batch_size", -3),
        ("crop_padding", -1),
        ("log_every_steps", 0),
        ("keep", 0),
        ("seed", -1),
        ("seed", 2**32),
        ("lr_milestones", (3, 2)),
        ("lr_milestones", (0,)),
    ],
)
def test_values_out_of_range_are_named(field, value):
    with pytest.raises(ConfigError, match=field):
        Config(**{field: value})


def test_a_step_schedule_needs_its_milestones():
    with pytest.raises(ConfigError, match="needs lr_milestones"):
        Config(schedule="step")


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_survives_its_file(name, tmp_path):
    cfg = RECIPES[name][1]
    path = tmp_path / "config.json"
    path.write_text(config_json.to_json(cfg))
    assert config_json.read_config(path) == cfg
    assert cfg.workdir == f"runs/{name}"


def test_every_field_has_its_help():
    for module, cls in ((config, Config), (options, options.EvaluateConfig)):
        text = Path(module.__file__).read_text(encoding="utf-8")
        for field in dataclasses.fields(cls):
            start = text.index(f"    {field.name}: ")
            assert text[start:].split("\n")[1].strip().startswith('"""'), field.name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "is not the config of a run"),
        ('{"colour": 1}', "is not the config of a run"),
        ('{"lr": "fast"}', "lr is 'fast'"),
        ('{"epochs": 1.5}', "epochs is 1.5"),
        ('{"epochs": true}', "epochs is True"),
        ('{"flip": 1}', "flip is 1"),
        ('{"stem": "big"}', "stem is 'big'"),
        ('{"lr_milestones": 3}', "lr_milestones is 3"),
        ('{"lr_milestones": ["x"]}', "lr_milestones is 'x'"),
        ('{"epochs": -1}', "epochs -1 is too small"),
    ],
)
def test_a_spoiled_file_is_refused(tmp_path, text, message):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        config_json.read_config(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        config_json.read_config(tmp_path / "config.json")


def test_whole_numbers_serve_as_floats(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"lr": 1, "max_steps": None, "stem": None}))
    cfg = config_json.read_config(path)
    assert cfg.lr == 1.0 and isinstance(cfg.lr, float) and cfg.max_steps is None


def test_differences_leave_out_what_belongs_to_one_invocation():
    old = Config()
    new = dataclasses.replace(
        old, lr=0.5, epochs=3, workdir="elsewhere", profile=True, data_dir="x"
    )
    assert config.differences(old, new) == {"lr": (1e-4, 0.5), "epochs": (30, 3)}


def test_the_sets_name_fields():
    names = {field.name for field in dataclasses.fields(Config)}
    assert names >= config.TRANSIENT | config.OVERRIDABLE
    assert not config.TRANSIENT & config.OVERRIDABLE
