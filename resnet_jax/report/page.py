"""A self-contained HTML page of text, tables and images."""

import base64
import html
import re
import struct
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from resnet_jax import files

_SHRINKS = 700  # width in pixels above which figures scroll on a narrow screen
_LEAST = 0.6  # smallest fraction of a figure's width at which its text is legible


class Point(NamedTuple):
    """A point on a curve in a figure, with the text to show there."""

    x: float  # fraction of the width, from the left
    y: float  # fraction of the height, from the top
    text: str


class Table(NamedTuple):
    """Rows of cells below a header; the first cell of a row is the row's header.

    Each cell is converted with str().
    """

    header: Sequence[Any]
    rows: Sequence[Sequence[Any]]
    caption: str
    is_sortable: bool = False


class Picture(NamedTuple):
    """A figure as a PNG file, with its text alternative.

    Args:
      points: points on the curves of the figure. The text of a point is shown while the
        mouse pointer is near the point.
      values: a table of the figure's values, collapsed below the figure until a reader
        opens it.
      has_images: whether the figure contains images. In dark mode, such a figure keeps
        its colors; the colors of other figures are inverted.
    """

    path: Path
    alt: str
    points: Sequence[Point] = ()
    values: Table | None = None
    has_images: bool = False


class Card(NamedTuple):
    """Names and values; the headline values are shown in large type."""

    headline: Mapping[str, str]
    others: Mapping[str, str]
    long: Mapping[str, str]


class Panels(NamedTuple):
    """Figures next to each other, or below each other on a narrow screen."""

    pictures: Sequence[Picture]


class Folded(NamedTuple):
    """Contents that are hidden until the reader opens them."""

    title: str
    contents: Sequence["Content"]


class Matrix(NamedTuple):
    """A square matrix of counts; the shade of a cell shows its share of the row total.

    Args:
      links: maps (row, column) to the id of the Image that the cell links to.
    """

    names: Sequence[str]
    counts: Sequence[Sequence[int]]
    links: Mapping[tuple[int, int], str]


class Image(NamedTuple):
    """A small image as PNG bytes, with its caption and an id to link to."""

    png: bytes
    caption: str
    id: str = ""


class Gallery(NamedTuple):
    """Small images with captions."""

    images: Sequence[Image]


# A str is a paragraph of plain text.
Content = str | Picture | Table | Card | Panels | Folded | Matrix | Gallery


def write(
    path: Path,
    title: str,
    sections: Mapping[str, Sequence[Content]],
    *,
    lang: str = "en",
) -> None:
    """Writes a self-contained page to `path`, with all text escaped.

    Raises:
      ConfigError: if the page cannot be written.
    """
    text = resources.files("resnet_jax.report")
    style, script = (
        text.joinpath(f"page.{x}").read_text("utf-8") for x in ("css", "js")
    )
    ids = {heading: _slug(heading, number) for number, heading in enumerate(sections)}
    links = "".join(
        f'<li><a href="#{ids[heading]}">{html.escape(heading)}</a></li>'
        for heading in sections
    )
    parts = []
    for heading, contents in sections.items():
        parts.append(f'<section id="{ids[heading]}"><h2>{html.escape(heading)}</h2>')
        parts += [_render(content) for content in contents]
        parts.append("</section>")
    name, body = html.escape(title), "\n".join(parts)
    files.write_text(
        path,
        f"""<!doctype html>
<html lang="{lang}"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,"><title>{name}</title><style>{style}</style></head>
<body><header><h1>{name}</h1>
<nav aria-label="Contents"><ul>{links}</ul></nav></header>
<main>
{body}
</main>
<script>{script}</script>
</body></html>
""",
    )


def _slug(heading: str, number: int) -> str:
    words = re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-")
    return words or f"section-{number}"


def _render(content: Content) -> str:
    match content:
        case str():
            return f"<p>{html.escape(content)}</p>"
        case Picture():
            return _figure(content)
        case Panels():
            return (
                f'<div class="panels">{"".join(map(_figure, content.pictures))}</div>'
            )
        case Table():
            return _table(content)
        case Card():
            return _card(content)
        case Folded():
            inside = "".join(map(_render, content.contents))
            title = html.escape(content.title)
            return _folded(title, inside)
        case Matrix():
            return _matrix(content)
        case Gallery():
            return f'<ul class="gallery">{"".join(map(_item, content.images))}</ul>'


def _folded(title: str, inside: str) -> str:
    return f"<details><summary>{title}</summary>{inside}</details>"


def _data(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


def _figure(picture: Picture) -> str:
    alt = html.escape(picture.alt)
    circles = "".join(
        f'<circle cx="{100 * x:.2f}%" cy="{100 * y:.2f}%" r="9" '
        f'data-x="{x:.4f}" data-y="{y:.4f}"><title>{html.escape(text)}</title></circle>'
        for x, y, text in picture.points
    )
    above = f'<svg aria-hidden="true">{circles}</svg>' if circles else ""
    png = picture.path.read_bytes()
    width, height = struct.unpack(">II", png[16:24])  # from the PNG's first chunk
    is_wide = width > _SHRINKS
    least = f' style="min-width: {_LEAST * width:.0f}px"' if is_wide else ""
    image = (
        f'<div class="image {"photos" if picture.has_images else "drawing"}"{least}>'
        f'<img alt="{alt}" width="{width}" height="{height}" src="{_data(png)}">'
        f"{above}</div>"
    )
    image = _scrolled(image, alt) if is_wide else image
    figure = f"<figure>{image}<figcaption>{alt}</figcaption></figure>"
    if picture.values is None:
        return figure
    return f"<div>{figure}{_folded('Values', _table(picture.values))}</div>"


def _item(image: Image) -> str:
    own = f' id="{image.id}"' if image.id else ""
    lines = html.escape(image.caption).replace("\n", "<br>")
    return f'<li{own}><img alt="" src="{_data(image.png)}">{lines}</li>'


def _table(table: Table) -> str:
    header = "".join(
        f'<th scope="col">{html.escape(str(cell))}</th>'
        if str(cell)
        else "<td></td>"  # a cell without text is not a header
        for cell in table.header
    )
    rows = ""
    for row in table.rows:
        first, *others = (html.escape(str(cell)) for cell in row)
        cells = "".join(f"<td>{cell}</td>" for cell in others)
        rows += f'<tr><th scope="row">{first}</th>{cells}</tr>'
    kind = ' class="sortable"' if table.is_sortable else ""
    caption = html.escape(table.caption)
    return _scrolled(
        f"<table{kind}>{_caption(caption)}<thead><tr>{header}</tr></thead>"
        f"<tbody>{rows}</tbody></table>",
        caption,
    )


def _caption(text: str) -> str:
    return f"<caption><span>{text}</span></caption>"


def _scrolled(content: str, label: str) -> str:
    """Returns `content` in a box that can also be scrolled with the keyboard."""
    how = f'class="scroll" tabindex="0" role="group" aria-label="{label}"'
    return f"<div {how}>{content}</div>"


def _card(card: Card) -> str:
    parts = ("big", card.headline), ("", card.others), ("wide", card.long)
    items = "".join(
        f'<div class="{kind}"><dt>{html.escape(name)}</dt>'
        f"<dd>{html.escape(value)}</dd></div>"
        for kind, values in parts
        for name, value in values.items()
    )
    return f'<dl class="card">{items}</dl>'


def _matrix(matrix: Matrix) -> str:
    names = [html.escape(name) for name in matrix.names]
    header = "".join(f'<th scope="col">{name}</th>' for name in names)
    rows = []
    for row, (name, counts) in enumerate(zip(names, matrix.counts, strict=True)):
        total, cells = max(sum(counts), 1), []
        for column, count in enumerate(counts):
            target = matrix.links.get((row, column))
            what = f"{count} of {total} {name} images predicted as {names[column]}"
            shown = (
                f'<a href="#{target}" title="{what}">{count}</a>' if target else count
            )
            share = 0.75 * count / total
            cells.append(
                f'<td style="--share: {share:.2f}" title="{what}">{shown}</td>'
            )
        rows.append(f'<tr><th scope="row">{name}</th>{"".join(cells)}</tr>')
    caption = (
        "Confusion matrix: rows are true classes, columns are predicted classes. "
        "Linked counts lead to example mistakes."
    )
    return _scrolled(
        f'<table class="matrix">{_caption(caption)}<thead><tr>'
        f'<th scope="col">true</th>{header}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>",
        "Confusion matrix",
    )
