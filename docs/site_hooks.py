"""Hooks for `mkdocs build` that add RESULTS.md to the site.

Links are written as GitHub needs them, such as `../RESULTS.md` in docs/ and
`docs/notes.md` in RESULTS.md, and are rewritten here for the site.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
# From the path on GitHub, relative to the root, to the page of the site.
PAGES = {
    "RESULTS.md": "results.md",
    "README.md#a-map-of-the-repository": "notes/code.md",
    "docs/experiments": "experiments.md",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds RESULTS.md as the page results.md."""
    text = (ROOT / "RESULTS.md").read_text(encoding="utf-8")
    text = text.replace("](docs/", "](")
    files.append(File.generated(config, PAGES["RESULTS.md"], content=text))
    return files


def on_page_markdown(
    markdown: str, page: Page, config: MkDocsConfig, files: Files
) -> str:
    r"""Redirects links to files outside docs/ and to folders to pages of the site.

    Also removes the backslash from `\|` in table code: GitHub needs it, and MkDocs
    would show it.
    """
    folder = posixpath.dirname(page.file.src_uri)

    def rewrite(match: re.Match[str]) -> str:
        link, anchor = match[1], match[2] or ""
        source = posixpath.normpath(posixpath.join("docs", folder, link))
        for name, rest in ((source + anchor, ""), (source, anchor)):
            if name in PAGES:
                return f"]({posixpath.relpath(PAGES[name], folder or '.')}{rest})"
        return match[0]

    def unescape(row: re.Match[str]) -> str:
        return re.sub(r"`[^`]+`", lambda code: code[0].replace("\\|", "|"), row[0])

    markdown = re.sub(r"^\|.*$", unescape, markdown, flags=re.MULTILINE)
    return re.sub(r"\]\(([^)#:\s]+)(#[^)\s]*)?\)", rewrite, markdown)
