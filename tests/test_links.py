"""Links in README.md and RESULTS.md have targets; mkdocs checks those in docs/."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def anchors_of(text: str) -> set[str]:
    """Returns the anchors that GitHub gives to the headings in `text`."""
    outside = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ +(.+)$", outside, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("name", ["README.md", "RESULTS.md"])
def test_relative_links_lead_somewhere(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    broken = []
    for link in links:
        path, _, anchor = link.partition("#")
        if ":" in path:
            continue
        target = ROOT / (path or name)
        if not target.exists() or (
            anchor and anchor not in anchors_of(target.read_text(encoding="utf-8"))
        ):
            broken.append(link)
    assert links and not broken
