"""Docstrings, comments, messages and pages use the field's words.

The list is of words that have crept in before. A docstring begins with a verb
("Returns") or, for data, with a noun, and its first sentence ends with a full stop.
"""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

import resnet_jax

ROOT = Path(resnet_jax.__file__).parents[1]
FOLDERS = ("resnet_jax", "experiments", "benchmarks", "docs")
PROGRAMS = sorted(
    str(path.relative_to(ROOT))
    for path in (
        *ROOT.glob("*.py"),
        *(p for f in FOLDERS for p in (ROOT / f).rglob("*.py")),
    )
)
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"))
    if not path.name.endswith(".ko.md")
)
# "picture" is a figure, and the folder of figures; data are images.
WORDS = {
    r"pictures?\b": "image",
    r"anew\b": "again",
    r"thrice\b": "three times",
    r"in company\b": "together",
    r"by turns\b": "alternating",
    r"what it is of\b": "what it describes",
    r"beside\b": "with, next to",
    r"got ahead\b": "prefetched",
    r"to and fro\b": "back and forth",
    r"of every kind\b": "many types of",
    # British spellings.
    r"\w*(?:colour|behaviour|neighbour|favour)\w*": "color, behavior, neighbor, favor",
    r"gre(?:y|yscale)\b": "gray",
    r"cent(?:re|red)\b": "center",
    r"\w*(?:al|im|nar|mor|yl)is(?:e|ed|es|ing|ation|er)\b": "-ize, -ization",
}
BANNED = re.compile(r"\b(" + "|".join(WORDS) + r")", re.IGNORECASE)
BEGINS_WITH_OF = re.compile(r"(?:^|[.!?]\s+)(Of (?!course)\w+)")


def faults(text: str) -> list[str]:
    """Returns the words in `text` that are not the field's."""
    # Not paths, code, or an argument of that name.
    text = re.sub(r"\S*pictures/\S*|`[^`\n]*`|^ *picture: ", "", text, flags=re.M)
    found = [match[0] for match in BANNED.finditer(text)]
    return found + [match[1] for match in BEGINS_WITH_OF.finditer(text)]


def prose(path: Path) -> list[tuple[int, str]]:
    """Returns (line, text) of the docstrings, comments and messages of a program."""
    source = path.read_text(encoding="utf-8")
    found = [
        (node.lineno, node.value)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and " " in node.value
    ]
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = [t for t in tokens if t.type == tokenize.COMMENT]
    return found + [(t.start[0], t.string.lstrip("# ")) for t in comments]


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_use_the_field_s_words(name):
    wrong = [
        f"{name}:{line}: {word!r}"
        for line, text in prose(ROOT / name)
        for word in faults(text)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", PAGES)
def test_pages_use_the_field_s_words(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    wrong = [word for line in text.splitlines() for word in faults(line)]
    assert not wrong


def test_the_docstrings_of_the_package_are_sentences():
    wrong = []
    for path in sorted((ROOT / "resnet_jax").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                continue
            first = (ast.get_docstring(node) or "A.").split("\n\n")[0]
            is_sentence = re.match(r"[A-Z0-9`]|[a-z_.0-9]+\(|torch\.|np\.", first)
            if not is_sentence or not re.search(r"[.:)`]$|https?:\/\/\S+$", first):
                name = getattr(node, "name", "module")
                wrong.append(f"{path.relative_to(ROOT)}: {name}: {first[:60]!r}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "text",
    [
        "a picture is read",
        "Of each image the label.",
        "It is done. Of two, one.",
        "anew",
        "initialisation",
        "normalised",
        "grey",
        "centred",
        "neighbouring",
        "colours",
        "behaviour",
    ],
)
def test_words_that_must_not_come_back_are_found(text):
    assert faults(text)
    assert not faults("See docs/pictures/cat.jpg, and of course `picture`.")
