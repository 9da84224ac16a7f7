"""A self-contained HTML page of text, tables and pictures."""

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from resnet_jax import files

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --back: #fff; --rule: #ccc;
  --faint: #666 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --back: #16181b; --rule: #444; --faint: #aaa } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back);
  max-width: 62rem; margin: 0 auto; padding: 1rem; overflow-wrap: anywhere }
h1 { font-size: 1.6rem } h2 { font-size: 1.2rem; margin-top: 2.5rem }
figure { margin: 1rem 0; overflow-x: auto } figcaption { color: var(--faint) }
img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; padding: 4px;
  box-sizing: border-box }
.table { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .2rem .8rem .2rem 0; overflow-wrap: normal;
  border-bottom: 1px solid var(--rule); vertical-align: top }
"""


class Picture(NamedTuple):
    """A PNG, and what it shows for who cannot see it."""

    path: Path
    alt: str


class Table(NamedTuple):
    """Rows of cells below a header; each cell is shown as str() has it."""

    header: Sequence[Any]
    rows: Sequence[Sequence[Any]]


Content = str | Picture | Table  # a str is a paragraph of plain text


def write(
    path: Path,
    title: str,
    sections: Mapping[str, Sequence[Content]],
    *,
    lang: str = "en",
) -> None:
    """Writes to `path` a page that needs no other file; its text is taken as text.

    Raises:
      ConfigError: it cannot be written there.
    """
    parts = []
    for heading, contents in sections.items():
        parts.append(f"<section><h2>{html.escape(heading)}</h2>")
        parts += [_render(content) for content in contents]
        parts.append("</section>")
    name = html.escape(title)
    body = "\n".join(parts)
    files.write_text(
        path,
        f"""<!doctype html>
<html lang="{lang}"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,"><title>{name}</title><style>{_STYLE}</style></head>
<body><h1>{name}</h1>
{body}
</body></html>
""",
    )


def _render(content: Content) -> str:
    if isinstance(content, Picture):
        data = base64.b64encode(content.path.read_bytes()).decode("ascii")
        alt = html.escape(content.alt)
        return (
            f'<figure><img alt="{alt}" src="data:image/png;base64,{data}">'
            f"<figcaption>{alt}</figcaption></figure>"
        )
    if isinstance(content, Table):
        header = "".join(
            f"<th>{html.escape(str(cell))}</th>" for cell in content.header
        )
        rows = "".join(
            "<tr>" + "".join(f"<td>{html.escape(str(x))}</td>" for x in row) + "</tr>"
            for row in content.rows
        )
        return (
            f'<div class="table"><table><thead><tr>{header}</tr></thead>'
            f"<tbody>{rows}</tbody></table></div>"
        )
    return f"<p>{html.escape(content)}</p>"
