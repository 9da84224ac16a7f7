import ast
import dataclasses
import inspect
import json
import os
import typing

import pytest
from configs import make_config
from hypothesis import given
from hypothesis import strategies as st

from resnet_jax import fields
from resnet_jax.commands.evaluate import EvaluateConfig
from resnet_jax.config import Config
from resnet_jax.errors import ConfigError
from resnet_jax.recipes import RECIPES
from resnet_jax.report.options import SubjectConfig
from resnet_jax.run import directory

# The groups' classes, by their names in Config.
GROUPS = {
    name: hint
    for name, hint in typing.get_type_hints(Config).items()
    if dataclasses.is_dataclass(hint)
}


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
        ("keep_checkpoints", 0),
        ("grad_accum_steps", 0),
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
        ("warmup_decay", 0.0),
        ("random_erasing", 1.5),
        ("crop_scale", 0.0),
        ("color_jitter", -0.1),
        ("repeated_augmentation", 0),
    ],
)
def test_values_out_of_range_are_named(field, value):
    with pytest.raises(ConfigError, match=field):
        make_config(**{field: value})


@pytest.mark.parametrize(
    "address", ["host0", ":12", "host0:", "host0:x", "h:70000", ""]
)
def test_an_address_without_its_port(address):
    with pytest.raises(
        ConfigError, match=f"coordinator '{address}' must have the form HOST:PORT"
    ):
        make_config(coordinator=address)
    for good in ("host0:1234", "10.0.0.1:5000", "[::1]:80"):
        assert make_config(coordinator=good).devices.coordinator == good


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"schedule": "step"}, "needs either lr_milestones or lr_step_size"),
        (
            {"schedule": "step", "lr_milestones": (2,), "lr_step_size": 3},
            "needs either lr_milestones or lr_step_size",
        ),
        ({"warmup_decay": 0.1}, "warmup_decay needs --warmup-epochs"),
        ({"ema_steps": 3}, "ema_steps needs --ema-decay"),
        (
            {"num_seeds": 2, "random_resized_crop": True},
            "combined with random_resized_crop",
        ),
        ({"num_seeds": 2, "auto_augment": "ta_wide"}, "combined with auto_augment"),
        (
            {"num_seeds": 2, "repeated_augmentation": 2},
            "combined with repeated_augmentation",
        ),
    ],
)
def test_options_that_need_each_other(chosen, message):
    with pytest.raises(ConfigError, match=message):
        make_config(**chosen)
    assert make_config(num_seeds=2, auto_augment="none", repeated_augmentation=1)


def test_a_field_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match="no field color"):
        make_config(lr=0.1, color=1)


def stored(cfg):
    """Returns `cfg` as in config.json, which has an absolute run directory."""
    return fields.replace(cfg, workdir=os.path.abspath(cfg.run.workdir))


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_survives_its_file(name, tmp_path):
    cfg = RECIPES[name][1]
    directory.write_config(tmp_path, cfg, [])
    assert directory.read_config(tmp_path / "config.json") == stored(cfg)
    assert cfg.run.workdir == f"runs/{name}"


def test_a_file_has_the_fields_by_their_groups(tmp_path):
    directory.write_config(tmp_path, make_config(lr=0.5, seed=3), [])
    values = json.loads((tmp_path / "config.json").read_text())
    assert values.keys() == {*GROUPS, "seed"}
    assert values["optim"]["lr"] == 0.5 and values["seed"] == 3


def test_no_two_groups_have_a_field_of_one_name():
    names = [field.name for field, _ in fields.flat(Config())]
    assert len(names) == len(set(names))
    assert "lr" in names and "seed" in names and "optim" not in names


def test_what_a_resume_may_change():
    """Fields of one invocation are excluded; the others say what may change."""
    free = {"workdir": "elsewhere", "data_dir": "x", "workers": 0, "override": True}
    assert fields.changes(make_config(), make_config(**free)) == {}
    new = make_config(**free, lr=0.5, epochs=7, keep_checkpoints=1, seed=2)
    assert fields.changes(make_config(), new) == {
        "lr": (1e-4, 0.5, "same"),
        "epochs": (30, 7, "override"),
        "keep_checkpoints": (3, 1, "override"),
        "seed": (0, 2, "same"),
    }


@pytest.mark.parametrize(
    ("changed", "override", "message"),
    [
        ({"epochs": 7}, False, "epochs 30 -> 7.: use --override to resume it, or ch"),
        ({"epochs": 7}, True, None),
        ({"workers": 1, "workdir": "x"}, False, None),
        ({"lr": 0.5, "epochs": 7}, True, "lr 0.0001 -> 0.5, epochs .*: choose another"),
    ],
)
def test_a_run_goes_on_with_what_a_resume_may_change(
    changed, override, message, tmp_path, capsys
):
    directory.write_config(tmp_path, make_config(), [])
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    cfg = make_config(**changed, override=override)
    if message is None:
        said = directory.check_resumable(cfg, tmp_path)
        overridden = ", configuration overridden: epochs 30 -> 7"
        assert said == (overridden if override else "")
        assert capsys.readouterr().out == ""  # it may still be refused elsewhere
        return
    with pytest.raises(ConfigError, match=message):
        directory.check_resumable(cfg, tmp_path)


@pytest.mark.parametrize(
    "cls", [Config, *GROUPS.values(), SubjectConfig, EvaluateConfig]
)
def test_every_field_has_its_help(cls):
    """Help is the docstring of each field, which tyro shows."""
    (tree,) = ast.parse(inspect.getsource(cls)).body
    hints = typing.get_type_hints(cls)
    for line, after in zip(tree.body, [*tree.body[1:], None], strict=True):
        if not isinstance(line, ast.AnnAssign):
            continue
        if dataclasses.is_dataclass(hints[line.target.id]):
            continue
        help_text = after.value.value if isinstance(after, ast.Expr) else None
        assert isinstance(help_text, str), line.target.id


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "is not the config of a run"),
        ('{"color": 1}', "is not the config of a run"),
        ('{"lr": 0.1}', "is not the config of a run"),
        ('{"optim": {"color": 1}}', "is not the config of a run"),
        ('{"optim": 3}', "is not the config of a run"),
        ('{"optim": {"lr": "fast"}}', "lr is 'fast'"),
        ('{"optim": {"lr": 1' + "0" * 400 + "}}", "lr is 1000"),
        ('{"run": {"epochs": 1.5}}', "epochs is 1.5"),
        ('{"run": {"epochs": true}}', "epochs is True"),
        ('{"augment": {"flip": true}}', "flip is True"),
        ('{"model": {"stem": "big"}}', "stem is 'big'"),
        ('{"optim": {"lr_milestones": 3}}', "lr_milestones is 3"),
        ('{"optim": {"lr_milestones": ["x"]}}', "lr_milestones is 'x'"),
        ('{"run": {"epochs": -1}}', "epochs -1 is too small"),
    ],
)
def test_a_spoiled_file_is_refused(tmp_path, text, message):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        directory.read_config(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        directory.read_config(tmp_path / "config.json")


def test_whole_numbers_serve_as_floats(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"optim": {"lr": 1}, "run": {"max_steps": None}}))
    cfg = directory.read_config(path)
    assert cfg.optim.lr == 1.0 and isinstance(cfg.optim.lr, float)
    assert cfg.run.max_steps is None


def values_of_fields():
    """Values of each field's type, valid and invalid."""
    hints = {"seed": int}
    for group in GROUPS.values():
        hints |= typing.get_type_hints(group)
    assert hints.keys() == {field.name for field, _ in fields.flat(Config())}
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


@given(values=values_of_fields())
def test_any_config_is_refused_in_a_line_or_comes_back_the_same(
    tmp_path_factory, values
):
    folder = tmp_path_factory.mktemp("config")
    try:
        cfg = make_config(**values)
    except ConfigError as error:
        assert any(name in str(error) for name in values)
        return
    directory.write_config(folder, cfg, [])
    assert directory.read_config(folder / "config.json") == stored(cfg)
    assert fields.changes(cfg, cfg) == {}


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner)
    ),
    max_leaves=5,
)


def some_fields(group):
    """Draws any values for some fields of a group, or in place of the group."""
    names = [field.name for field in dataclasses.fields(group)]
    return st.dictionaries(st.sampled_from(names), anything, max_size=3) | anything


@given(
    values=st.fixed_dictionaries(
        {},
        optional={
            "seed": anything,
            **{name: some_fields(group) for name, group in GROUPS.items()},
        },
    )
)
def test_a_config_with_other_types_is_refused_in_a_line(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("config") / "config.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    try:
        cfg = directory.read_config(path)
    except ConfigError as error:
        assert len(str(error).splitlines()) <= 1
    else:
        flat = {field.name: value for field, value in fields.flat(cfg)}
        groups = [values.pop(name) for name in GROUPS.keys() & values.keys()]
        for name, value in [
            (n, v) for part in (values, *groups) for n, v in part.items()
        ]:
            found = flat[name]
            assert found == (tuple(value) if isinstance(value, list) else value)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"optim": {"lr": ' + "9" * 5000 + "}}",
        "null",
        "[]",
        '{"x": 1}',
        "\xff",
    ],
)
def test_files_that_are_no_config(text, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match="config.json"):
        directory.read_config(path)


def test_a_file_of_more_than_a_config_is_not_read(tmp_path):
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(10**10)  # takes no space
    with pytest.raises(ConfigError, match="is too large .10000000000 bytes"):
        directory.read_config(path)
