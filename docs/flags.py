"""Writes docs/flags.md, a page of all options of train.py: `python docs/flags.py`."""

import ast
import dataclasses
import inspect
import re
import typing
from pathlib import Path
from typing import Any

from resnet_jax import config, config_data
from resnet_jax.config import Config
from resnet_jax.fields import flat
from resnet_jax.recipes import RECIPES

_TITLES = {
    "model": "Network",
    "data": "Data",
    "augment": "Augmentation",
    "transfer": "Transfer",
    "optim": "Optimization",
    "devices": "Devices",
    "run": "Run",
}
_MARKS = {"same": "", "override": " †", "free": " ‡"}
_HEAD = """\
# All options of training

`python docs/flags.py` generates this page from the configuration; `python train.py
RECIPE --help` prints the same options with the defaults of that recipe. A default
applies unless the recipe sets another value; the last column names the recipes that do.
`--no-X` turns option X off. A resumed run needs the options it was started with, except
that options marked † may change with `--override`, and options marked ‡ may change
freely.
"""


def documented() -> dict[str, str]:
    """Returns the docstring of each field, by name."""
    found: dict[str, str] = {}
    for module in (config, config_data):
        for node in ast.parse(inspect.getsource(module)).body:
            body = node.body if isinstance(node, ast.ClassDef) else []
            for one, after in zip(body, body[1:], strict=False):
                if isinstance(one, ast.AnnAssign) and isinstance(after, ast.Expr):
                    assert isinstance(one.target, ast.Name)
                    text = ast.literal_eval(after.value)
                    found[one.target.id] = inspect.cleandoc(text).replace("\n", " ")
    return found


def values_of(hint: Any, metadata: dict[str, Any]) -> str:
    """Returns the values that a field accepts: its choices, or its type and range."""
    options = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return " ".join(f"`{one}`" for one in options)
    if type(None) in options:
        return values_of(options[0], metadata)
    if options:
        return f"several {values_of(options[0], {})}"
    name = {bool: "", int: "integer", float: "number", str: "text"}[hint]
    if metadata.get("path"):
        name = "path"
    if metadata.get("within"):
        name += f" in {metadata['within']}"
    for key, words in (("at_least", "at least"), ("at_most", "at most")):
        bound = metadata.get(key, float("inf"))
        if abs(bound) != float("inf"):
            name += f", {words} {bound:g}"
    return name


def shown(value: Any) -> str:
    """Returns a value as the user types it."""
    if value is None or value == ():
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def table(owner: type, names: set[str]) -> list[str]:
    """Returns the table rows of the fields `names` of a group."""
    texts, hints = documented(), typing.get_type_hints(owner)
    lines = [
        "| option | values | default | meaning | recipes |",
        "|---|---|---|---|---|",
    ]
    for one in dataclasses.fields(owner):
        if one.name not in names:
            continue
        mark = _MARKS[one.metadata.get("resume", "same")]
        set_by = []
        for name, (_, recipe) in RECIPES.items():
            (value,) = (
                value for field, value in flat(recipe) if field.name == one.name
            )
            if value != one.default:
                set_by.append(f"{name} {shown(value) or 'none'}")
        cells = (
            f"`--{one.name.replace('_', '-')}`{mark}",
            values_of(hints[one.name], dict(one.metadata)),
            shown(one.default),
            re.sub(r"[\[|]", r"\\\g<0>", texts[one.name]),
            "; ".join(set_by),
        )
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def page() -> str:
    """Returns the page as Markdown."""
    lines = [_HEAD]
    for name, owner in typing.get_type_hints(Config).items():
        if name in _TITLES:
            names = {one.name for one in dataclasses.fields(owner)}
            lines += [f"## {_TITLES[name]}\n", *table(owner, names), ""]
    return "\n".join([*lines, "## Seed\n", *table(Config, {"seed"}), ""])


if __name__ == "__main__":
    Path(__file__).with_name("flags.md").write_text(page(), encoding="utf-8")
