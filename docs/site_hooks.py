"""Hooks of `mkdocs build`: makes RESULTS.md of the repository's root a page of the site.

Links are written as GitHub needs them, `../RESULTS.md` in docs/ and `docs/notes.md` in
RESULTS.md, and are rewritten here for the site.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
RESULTS, PAGE = "RESULTS.md", "results.md"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds RESULTS.md as the page results.md."""
    text = (ROOT / RESULTS).read_text(encoding="utf-8")
    text = re.sub(r"\]\(docs/", "](", text)
    files.append(File.generated(config, PAGE, content=text))
    return files


def on_page_markdown(
    markdown: str, page: Page, config: MkDocsConfig, files: Files
) -> str:
    """Points links to the repository's RESULTS.md at the page results.md."""
    folder = posixpath.dirname(page.file.src_uri)
    target = posixpath.relpath(PAGE, folder or ".")
    return re.sub(r"\]\((?:\.\./)+RESULTS\.md", f"]({target}", markdown)
