import dataclasses
import inspect
import json
import typing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import train
from resnet_jax import config, models, training
from resnet_jax.commands import options
from resnet_jax.config import Config
from resnet_jax.data import augment
from resnet_jax.errors import ConfigError
from resnet_jax.recipes import RECIPES
from resnet_jax.run import config_json
from resnet_jax.run import directory as rundir
from resnet_jax.training import compiling, optim


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
        ("drop_path", 1.0),
        ("ema_decay", 1.0),
        ("mixup", -0.1),
        ("cutmix", float("inf")),
        ("cutout", -1),
        ("width", 0),
        ("clip_grad", 0.0),
        ("warmup_epochs", -1.0),
        ("flip_alternating", True),
    ],
)
def test_values_out_of_range_are_named(field, value):
    with pytest.raises(ConfigError, match=field):
        Config(**{field: value})


@pytest.mark.parametrize(
    "address", ["host0", ":12", "host0:", "host0:x", "h:70000", ""]
)
def test_an_address_without_its_port(address):
    with pytest.raises(ConfigError, match=f"coordinator '{address}' is not HOST:PORT"):
        Config(coordinator=address)
    for good in ("host0:1234", "10.0.0.1:5000", "[::1]:80"):
        assert Config(coordinator=good).coordinator == good


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


def fields():
    """Values of each field's type, sound and not."""
    hints = typing.get_type_hints(Config)
    kinds = {
        int: st.integers(-2, 10**6),
        float: st.floats(allow_nan=True, width=64) | st.floats(0, 0.5),
        bool: st.booleans(),
        str: st.text(max_size=4),
    }

    def values(hint):
        options = typing.get_args(hint)
        origin = typing.get_origin(hint)
        if origin is typing.Literal:
            return st.sampled_from(options)
        if origin is tuple:
            return st.lists(st.integers(1, 99), max_size=3).map(tuple)
        if options:  # X | None
            return st.none() | values(options[0])
        return kinds[hint]

    optional = {name: values(hint) for name, hint in hints.items()}
    return st.fixed_dictionaries({}, optional=optional)


# Each ingredient by its field: the argument that it is, and a value not the default.
ARCHITECTURE = {
    "drop_path": 0.1,
    "dropout": 0.2,
    "zero_init_last": True,
    "width": 4,
    "whiten": True,
    "init": "torch",
}
OPTIMIZATION = {
    "name": "muon",
    "momentum": 0.3,
    "nesterov": True,
    "weight_decay": 0.01,
    "norm_weight_decay": 0.02,
    "bias_weight_decay": 0.03,
    "clip_grad": 4.0,
}
SCHEDULING = {
    "name": "step",
    "lr": 0.05,
    "milestones": (3, 6),
    "gamma": 0.06,
    "pct_start": 0.07,
    "warmup_epochs": 0.8,
}
AUGMENTATION = {
    "crop_padding": 1,
    "crop_fill": "reflect",
    "flip": True,
    "flip_alternating": True,
    "cutout_size": 2,
    "mixup_alpha": 0.09,
    "cutmix_alpha": 0.11,
    "label_smoothing": 0.12,
}
STEPPING = {"accumulate": 2, "ema_decay": 0.13}
RENAMED = {
    "milestones": "lr_milestones",
    "gamma": "lr_gamma",
    "cutout_size": "cutout",
    "mixup_alpha": "mixup",
    "cutmix_alpha": "cutmix",
}


@pytest.mark.parametrize(
    "function, name, ingredients",
    [
        (models.create_model, "architecture", ARCHITECTURE),
        (optim.make_optimizer, "optimization", OPTIMIZATION),
        (optim.make_schedule, "scheduling", SCHEDULING),
        (augment.make_augment, "augmentation", AUGMENTATION),
        (training.train_step, "stepping", STEPPING),
    ],
)
def test_every_ingredient_is_an_argument_with_its_default(function, name, ingredients):
    given = getattr(Config(), name)
    defaults = inspect.signature(function).parameters
    assert ingredients.keys() <= given.keys() <= defaults.keys()
    for argument in ingredients.keys() - {"name", "lr"}:
        assert given[argument] == defaults[argument].default != ingredients[argument]


def test_training_has_of_every_ingredient_what_the_configuration_says(
    monkeypatch, tmp_path
):
    found = {}

    class Stopped(Exception):
        pass

    def watch(module, name):
        function = getattr(module, name)

        def watched(*args, **options):
            found.setdefault(name, []).append(options)
            return function(*args, **options)

        monkeypatch.setattr(module, name, watched)

    def stop(*args, **options):
        raise Stopped

    monkeypatch.setattr(compiling, "compile_step", stop)
    watch(models, "create_model")
    watch(optim, "make_optimizer")
    watch(optim, "make_schedule")
    watch(augment, "make_augment")
    watch(training, "make_train_step")
    fields = {**ARCHITECTURE, **OPTIMIZATION, **SCHEDULING, **AUGMENTATION, **STEPPING}
    fields = {RENAMED.get(name, name): value for name, value in fields.items()}
    del fields["name"]
    cfg = Config(
        **fields,
        **{"model": "resnet9", "dataset": "digits", "normalize": "half"},
        **{"optimizer": "muon", "schedule": "step", "batch_size": 300},
        workdir=str(tmp_path / "run"),
    )
    with pytest.raises(Stopped):
        train.main(cfg)
    per_epoch = {"steps_per_epoch": 5}  # of 1437 digits
    (model,), (tx,), (schedule,), (step,) = (
        found[name]
        for name in (
            "create_model",
            "make_optimizer",
            "make_schedule",
            "make_train_step",
        )
    )
    assert ARCHITECTURE.items() <= model.items()
    assert OPTIMIZATION.items() <= tx.items()
    assert (SCHEDULING | per_epoch).items() <= schedule.items()
    assert STEPPING.items() <= step.items()
    of_test, of_training = found["make_augment"]
    assert (AUGMENTATION | per_epoch).items() <= of_training.items()
    assert not AUGMENTATION.keys() & of_test.keys()


def test_nothing_is_rebuilt_by_reading_a_run():
    """evaluate.py loads data as the run's configuration says, but for that."""
    assert "rebuild" not in Config(rebuild_data=True).loading


@given(values=fields())
def test_any_config_is_refused_in_a_line_or_comes_back_the_same(
    tmp_path_factory, values
):
    path = tmp_path_factory.mktemp("config") / "config.json"
    try:
        cfg = Config(**values)
    except ConfigError as error:
        assert any(name in str(error) for name in values)
        return
    path.write_text(config_json.to_json(cfg), encoding="utf-8")
    assert config_json.read_config(path) == cfg
    assert rundir.differences(cfg, cfg) == {}


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner)
    ),
    max_leaves=5,
)


@given(
    values=st.dictionaries(
        st.sampled_from([field.name for field in dataclasses.fields(Config)]), anything
    )
)
def test_a_config_with_other_types_is_refused_in_a_line(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("config") / "config.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    try:
        cfg = config_json.read_config(path)
    except ConfigError as error:
        assert len(str(error).splitlines()) <= 1
    else:
        for name, value in values.items():
            found = getattr(cfg, name)
            assert found == (tuple(value) if isinstance(value, list) else value)


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"lr": ' + "9" * 5000 + "}", "null", "[]", '{"x": 1}', "\xff"],
)
def test_files_that_are_no_config(text, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match="config.json"):
        config_json.read_config(path)


def test_a_file_of_more_than_a_config_is_not_read(tmp_path):
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(10**10)  # takes no room
    with pytest.raises(ConfigError, match="has 10000000000 bytes"):
        config_json.read_config(path)
