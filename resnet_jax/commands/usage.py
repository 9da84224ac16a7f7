"""Help text for command-line options, and one-line usage errors."""

import ast
import contextlib
import dataclasses
import difflib
import inspect
import io
import re
import sys
import textwrap
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from resnet_jax.errors import ConfigError

# Names that other programs use for some options.
_ELSEWHERE = {
    "arch": "model",
    "gpus": "devices",
    "learning-rate": "lr",
    "output-dir": "workdir",
    "ngpus": "devices",
    "wd": "weight-decay",
}
_OF_TYRO = ("help", "tyro-print-completion", "tyro-write-completion")
_EDGES = " │╭╮╰╯|+"  # edges of tyro's boxes, in Unicode and in ASCII
_RULE = re.compile("[─-]{3,}")


def program() -> str:
    """Returns the name of this program as the user typed it."""
    return Path(sys.argv[0]).name


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Returns ": did you mean X?" if a known name X resembles `given`, else ""."""
    like = difflib.get_close_matches(given, list(known), 1)
    return f": did you mean {like[0]}?" if like else ""


def check_flags(options: Any, args: Sequence[str], caller: str) -> None:
    """Raises ConfigError for the first flag that `options` does not accept."""
    known = {**dict.fromkeys(_OF_TYRO, False), **dict(_flags(options))}
    for arg in args:
        if not re.match("-{1,2}[A-Za-z]", arg) or arg == "-h" or _is_number(arg):
            continue
        name = arg.lstrip("-").split("=")[0].replace("_", "-")
        if arg.startswith("--") and name in known:
            if "=" in arg and known[name]:
                raise ConfigError(f"--{name} takes no value (see `{caller} --help`)")
            continue
        like = _ELSEWHERE.get(name, "")
        hint = f": did you mean --{like}?" if like in known else ""
        hint = hint or did_you_mean(f"--{name}", [f"--{one}" for one in known])
        raise ConfigError(
            f"unknown option {arg.split('=')[0]}{hint} (`{caller} --help` lists "
            "the options)"
        )


def _is_number(text: str) -> bool:
    with contextlib.suppress(ValueError):
        float(text)
        return True
    return False


def _flags(options: Any) -> Iterator[tuple[str, bool]]:
    """Yields the name of each flag, without dashes, and whether it takes no value."""
    hints = typing.get_type_hints(options)
    for one in dataclasses.fields(options):
        if dataclasses.is_dataclass(hints[one.name]):
            yield from _flags(hints[one.name])
        else:
            name, is_switch = one.name.replace("_", "-"), hints[one.name] is bool
            yield name, is_switch
            if is_switch:
                yield f"no-{name}", True


@contextlib.contextmanager
def one_line(caller: str) -> Iterator[None]:
    """Context manager that turns tyro's usage errors into one-line ConfigErrors.

    Raises:
      ConfigError: if the command line is invalid.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            yield
    except SystemExit as end:
        if not end.code:
            raise
        raise ConfigError(
            f"{_reason(said.getvalue())} (see `{caller} --help`)"
        ) from None


def _reason(text: str) -> str:
    """Returns the first message in tyro's error box, reworded if it is recognized."""
    parts: list[list[str]] = [[]]
    for line in text.splitlines()[1:]:  # the first line contains the title
        inside = line.strip(_EDGES)
        if _RULE.fullmatch(inside):
            parts.append([])
        elif inside:
            parts[-1].append(inside)
    said = " ".join(next(filter(None, parts), ["bad usage"]))
    if found := re.match("invalid choice '(.*)' for argument '(.*)'. Expected", said):
        value, name = found.groups()
        known = [one for one in re.findall("'([^']*)'", said[found.end() :])]
        hint = did_you_mean(value, known)
        choices = ", ".join(known) if len(known) == 1 else f"one of {', '.join(known)}"
        return f"{_shown(name)} must be {choices}, not {value!r}{hint}"
    if found := re.match("Missing value for argument '(.*?)'", said):
        return f"{_shown(found[1])} needs a value"
    if found := re.match(r"Error parsing (\S+?):.* (int|float)\b.*'(.*)'", said):
        kind = {"int": "a whole number", "float": "a number"}[found[2]]
        return f"{_shown(found[1])} {found[3]!r} is not {kind}"
    if found := re.match(r"Missing from .*?: (\S+)", said):
        return f"missing {found[1]}"
    if found := re.match("Unrecognized options?: (.*)", said):
        return f"unexpected argument {found[1]}"
    return said


def _shown(name: str) -> str:
    return name if name.startswith("-") else name.upper()


def describe(options: Any) -> None:
    """Adds help text to the fields of the class `options`.

    Each default is shown once: in the help text if the default is None, and after the
    help text otherwise.
    """
    import tyro

    hints = typing.get_type_hints(options, include_extras=True)
    texts = help_texts(options)
    described: dict[str, Any] = {}
    for one in dataclasses.fields(options):
        hint = hints[one.name]
        if dataclasses.is_dataclass(hint):
            describe(hint)
        elif not any(isinstance(x, _Described) for x in typing.get_args(hint)):
            configured = tyro.conf.arg(
                help=texts.get(one.name),
                metavar=_metavar(one.name, hint),
                help_behavior_hint=_default,
            )
            hint = Annotated[hint, configured, _Described()]
        described[one.name] = hint
    options.__annotations__ = {**options.__annotations__, **described}


def in_groups(options: Any) -> Any:
    """Returns a class with the fields of `options` grouped by their defining class.

    --help shows a box for each group. Call `describe` first.
    """
    hints = typing.get_type_hints(options, include_extras=True)
    seen: set[str] = set()
    groups: list[Any] = []
    for cls in reversed(options.__mro__[:-1]):
        listed = dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()
        own = [one for one in listed if one.name not in seen]
        seen |= {one.name for one in own}
        if own:
            fields = [
                (one.name, hints[one.name], dataclasses.field(default=one.default))
                for one in own
            ]
            made = dataclasses.make_dataclass(cls.__name__, fields, frozen=True)
            made.__doc__ = cls.__doc__
            name = cls.__dict__.get("title", cls.__name__.removesuffix("Config"))
            groups.append((name.lower(), made, dataclasses.field(default_factory=made)))
    return dataclasses.make_dataclass(options.__name__, groups, frozen=True)


def from_groups(options: Any, groups: Any) -> Any:
    """Converts an instance of the class from in_groups to an instance of `options`."""
    parts = [getattr(groups, one.name) for one in dataclasses.fields(groups)]
    return options(**{name: v for part in parts for name, v in vars(part).items()})


class _Described:
    """Marks a field that `describe` has already processed."""


def _default(shown: str) -> str:
    return "" if shown in ("None", "''", "") else f"(default: {shown})"


def _metavar(name: str, hint: Any) -> str | None:
    """Returns the placeholder for an option's value, or None to let tyro choose it."""
    is_positional = typing.get_origin(hint) is Annotated
    plain = typing.get_args(hint)[0] if is_positional else hint
    arms = typing.get_args(plain)
    is_optional = typing.get_origin(plain) in (types.UnionType, typing.Union)
    inner = arms[0] if is_optional else plain
    if typing.get_origin(inner) is Literal:
        return f"{{{','.join(map(str, typing.get_args(inner)))}}}"
    if is_positional:
        more = " ..." if typing.get_origin(plain) is tuple else ""
        return f"[{name.upper()}{more}]"
    if inner is bool:
        return "{True,False}" if is_optional else None
    return inner.__name__.upper() if is_optional else None


def help_texts(options: Any) -> dict[str, str]:
    """Returns the help text of each field: the string literal below it."""
    texts: dict[str, str] = {}
    for cls in reversed(options.__mro__[:-1]):
        try:
            (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
        except OSError:  # the source is not available
            continue
        body = typing.cast(ast.ClassDef, tree).body
        for line, after in zip(body, body[1:], strict=False):
            if isinstance(line, ast.AnnAssign) and isinstance(after, ast.Expr):
                target = typing.cast(ast.Name, line.target).id
                text = typing.cast(ast.Constant, after.value).value
                texts[target] = " ".join(str(text).split())
    return texts
