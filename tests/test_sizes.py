"""Modules and functions are short enough to be read at once."""

import ast

from pages import ROOT

MODULES = sorted((ROOT / "resnet_jax").rglob("*.py"))


def lengths(source: str) -> list[tuple[str, int]]:
    """Returns the name and the number of lines of each function in a module."""
    return [
        (node.name, node.end_lineno - node.lineno + 1)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def test_modules_have_at_most_300_lines():
    counts = {path: len(path.read_text().splitlines()) for path in MODULES}
    assert len(counts) > 100
    assert not [path for path, count in counts.items() if count > 300]


def test_functions_have_fewer_than_60_lines():
    found = [
        (count, name, path)
        for path in MODULES
        for name, count in lengths(path.read_text())
    ]
    assert len(found) > 1000
    assert not [one for one in found if one[0] >= 60]


def test_lines_are_counted_with_the_docstring():
    source = 'def f():\n    """A."""\n\n    def f(): ...\n'
    assert lengths(source) == [("f", 4), ("f", 1)]
