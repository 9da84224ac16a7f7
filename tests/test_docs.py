"""Commands and Python code in the documentation are valid.

Each command in an sh block is parsed by the program that it starts, and each python
block is compiled; those in docs/api.md also run. A block that cannot be tried has a
line `<!-- not run here: REASON -->` above it.
"""

import importlib
import importlib.util
import re
import tomllib
import typing
from pathlib import Path

import pytest
import tyro
from pages import PAGES, ROOT, blocks, commands_of

from docs import flags
from resnet_jax import commands
from resnet_jax.commands.command_line import parse_recipe
from resnet_jax.config import Config

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
# Setup programs, whose options are not checked.
OTHERS = {
    *("cd", "git", "python3", "pip", ".", "export", "mkdocs", "pre-commit", "ruff"),
    *("mypy", "lint-imports", ".ci/run", "ls", "cat", "mkdir", "tensorboard"),
}


def options_of(name: str) -> type:
    """Returns the class of a command's options."""
    main = importlib.import_module(f"resnet_jax.commands.{name}").main
    (found,) = (h for n, h in typing.get_type_hints(main).items() if n != "return")
    return found


def _benchmark(module: str) -> type:
    """Returns the class of options that a benchmark passes to tyro.cli."""
    path = ROOT / Path(*module.split(".")).with_suffix(".py")
    name = re.search(r"tyro\.cli\((\w+)", path.read_text(encoding="utf-8"))[1]
    return getattr(importlib.import_module(module), name)


def check(command: list[str]) -> None:
    """Raises SystemExit or another exception if a command is invalid."""
    program, *args = command
    if "..." in args or program in OTHERS:
        for extras in re.findall(r"\.\[([\w,]+)\]", " ".join(args)):
            known = PROJECT["project"]["optional-dependencies"]
            assert set(extras.split(",")) <= known.keys(), extras
        return
    if program == "pytest":
        markers = PROJECT["tool"]["pytest"]["ini_options"]["markers"]
        known = {marker.partition(":")[0] for marker in markers}
        if "-m" in args:
            words = re.findall(r"\w+", args[args.index("-m") + 1])
            assert set(words) <= known | {"and", "or", "not"}, words
        for path in (a for a in args if a.startswith("tests/")):
            assert (ROOT / path.partition("::")[0]).exists(), path
        return
    if program == "python" and args[0] in ("train.py", "evaluate.py"):
        args = [args[0].removesuffix(".py"), *args[1:]]
    elif program == "python" and args[:2] == ["-m", "resnet_jax"]:
        args = args[2:]
    elif program == "python" and args[0] == "-m":
        if args[1] in ("venv", "pip", "http.server"):
            return
        module = args[1] if "." in args[1] else f"{args[1]}.__main__"
        assert importlib.util.find_spec(module) is not None, module
        if module.startswith("benchmarks."):
            tyro.cli(_benchmark(module), args=args[2:])
        return
    elif program == "python" and args[0] == "-c":
        compile(args[1], "-c", "exec")
        return
    elif program == "python":
        assert (ROOT / args[0]).exists(), args[0]
        return
    else:
        assert program == "resnet-jax", f"unknown program {program}"
    name, *args = args
    if {"--help", "--version"} & {name, *args}:
        return
    assert name in commands.COMMANDS, name
    options = options_of(name)
    if options is Config:
        parse_recipe(None, args)
    else:
        tyro.cli(options, args=args)


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_one(page):
    wrong = []
    for command in (c for block in blocks(page, "sh") for c in commands_of(block)):
        try:
            check(command)
        except (SystemExit, Exception) as error:
            wrong.append((" ".join(command), repr(error)))
    assert not wrong


def test_a_command_that_is_none_is_found():
    for text in (
        "python train.py digits --epoch 3",
        "python train.py digit",
        "resnet-jax predictt a.jpg",
        "python -m benchmarks.nothing",
        "python -m benchmarks.grouped --round 3",
        "pip install -e '.[gpu]'",
        "pytest -m fast",
        "gcloud compute tpus create",
    ):
        (command,) = commands_of(text + "   # a comment")
        with pytest.raises((SystemExit, Exception)):
            check(command)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_of_a_known_language(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    fences = re.findall(r"^ *```(.*)$", text, re.MULTILINE)
    assert set(fences[::2]) <= {"sh", "python", "text", "yaml"}
    assert not any(fences[1::2])
    assert "\\\\\n" not in text  # continues no line of a shell


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_python_compiles(page):
    for block in blocks(page, "python"):
        if excerpt := re.match(r"# (resnet_jax/\S+)", block):
            text = (ROOT / excerpt[1]).read_text(encoding="utf-8")
            lines = {line.strip() for line in text.splitlines()} | {"", "..."}
            for line in block.splitlines()[1:]:
                assert line.strip() in lines
        elif not re.search(r"^\s*\.\.\.$", block, re.MULTILINE):
            compile(block, page, "exec")


@pytest.mark.process
@pytest.mark.parametrize("number", range(len(blocks("docs/api.md", "python"))))
def test_the_examples_of_the_library_run(number, monkeypatch):
    monkeypatch.chdir(ROOT)
    exec(compile(blocks("docs/api.md", "python")[number], "docs/api.md", "exec"), {})


def test_the_page_of_options_is_that_of_the_configuration():
    kept = (ROOT / "docs" / "flags.md").read_text(encoding="utf-8")
    assert kept == flags.page(), "an option has changed: python docs/flags.py"
