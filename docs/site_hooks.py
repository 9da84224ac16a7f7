"""Hooks for `mkdocs build` that add RESULTS.md and convert formulas to MathML.

The pages contain links as GitHub needs them, such as `../RESULTS.md` in docs/ and
`docs/notes.md` in RESULTS.md; the hooks rewrite them for the site. Formulas are written
in TeX between dollar signs, which GitHub renders. On the site, they become MathML,
which browsers render without a script.
"""

import posixpath
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
# Maps paths on GitHub, relative to the root, to pages of the site.
PAGES = {
    "RESULTS.md": "results.md",
    "README.md#a-map-of-the-repository": "notes/code.md",
    "docs/experiments": "experiments.md",
}

CODE_OR_FORMULA = re.compile(
    r"^```.*?^```$|`[^`\n]+`"  # a dollar sign in code is the shell's
    r"|\$\$(?P<display>.+?)\$\$|\$(?P<inline>[^\s$](?:[^$\n]*[^\s$])?)\$",
    re.MULTILINE | re.DOTALL,
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds RESULTS.md as the page results.md."""
    text = (ROOT / "RESULTS.md").read_text(encoding="utf-8")
    text = text.replace("](docs/", "](")
    files.append(File.generated(config, PAGES["RESULTS.md"], content=text))
    return files


def on_page_markdown(
    markdown: str, page: Page, config: MkDocsConfig, files: Files
) -> str:
    r"""Redirects links to folders and to files outside docs/ to pages of the site.

    Also converts formulas, and removes the backslash from `\|` in the code in tables,
    where GitHub needs it but MkDocs would show it.
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
    markdown = re.sub(r"\]\(([^)#:\s]+)(#[^)\s]*)?\)", rewrite, markdown)
    return CODE_OR_FORMULA.sub(_to_mathml, markdown)


def _to_mathml(match: re.Match[str]) -> str:
    """Returns a formula as MathML on one line, or code unchanged."""
    formula = match["display"] or match["inline"]
    if formula is None:
        return match[0]
    display = "block" if match["display"] else "inline"
    mathml = convert(formula.strip().replace("\n", " "), display=display)
    return f"<span>{mathml}</span>"  # a line that starts with <math> is a block
