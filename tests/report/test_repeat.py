import shlex

import pytest

from resnet_jax import fields
from resnet_jax.commands.command_line import parse_recipe
from resnet_jax.recipes import RECIPES
from resnet_jax.report import repeat


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_repeats_itself(name):
    assert repeat.command(RECIPES[name][1]) == f"python train.py {name}"


@pytest.mark.parametrize(
    ("name", "changes", "flags"),
    [
        (
            "digits",
            {"epochs": 2, "workdir": "/runs/my run"},
            "--epochs 2 --workdir '/runs/my run'",
        ),
        ("fast", {"lr": 5e-05, "whiten": True}, "--whiten --lr 5e-05"),
        ("hresnet", {"sync_bn": False, "image_size": 64}, None),
        ("resnet20", {"lr_milestones": (3, 5), "epochs": 9}, None),
        ("imagenet", {"auto_augment": "none", "data_dir": "/data/i"}, None),
    ],
)
def test_a_command_gives_the_configuration_again(name, changes, flags):
    cfg = fields.replace(RECIPES[name][1], **changes)
    command = repeat.command(cfg)
    if flags is not None:
        assert command == f"python train.py {name} {flags}"
    _, _, *words = shlex.split(command)
    assert parse_recipe(None, words) == cfg


@pytest.mark.parametrize("name", RECIPES)
def test_flags_turn_a_recipe_into_any_other(name):
    names = list(RECIPES)
    other = names[names.index(name) - 1]
    cfg = RECIPES[other][1]
    words = [name, *repeat._flags(RECIPES[name][1], cfg)]
    assert parse_recipe(None, words) == cfg


def test_options_of_one_invocation_are_left_out():
    cfg = fields.replace(RECIPES["digits"][1], devices=8, workers=2, profile=True)
    assert repeat.command(cfg) == "python train.py digits"
