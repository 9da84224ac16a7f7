"""The documentation's pages and the code in them."""

import re
import shlex
from pathlib import Path

import resnet_jax

ROOT = Path(resnet_jax.__file__).parents[1]
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"))
)
BLOCK = re.compile(
    r"^(<!-- not run here: .+ -->\n+)?^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL
)


def blocks(page: str, language: str) -> list[str]:
    """Returns a page's code blocks in a language, except for marked ones."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [m[3] for m in BLOCK.finditer(text) if m[2] == language and not m[1]]


def commands_of(block: str) -> list[list[str]]:
    """Yields the words of each command, without comments and variables."""
    found = []
    for line in block.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words:
            ends = [i for i, word in enumerate(words) if word in ("&&", "|", ";", "&")]
            end = ends[0] if ends else len(words)
            command, words = words[:end], words[end + 1 :]
            while command and re.match(r"\w+=", command[0]):
                command = command[1:]
            if command and command[0] == "srun":
                command = command[1:]
            found.append(command)
    return [command for command in found if command]
