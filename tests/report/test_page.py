import re

import numpy as np
from PIL import Image

from resnet_jax.report import page

EVIL = '<script>alert("x")</script>\'"&'


def test_nothing_from_outside_becomes_markup(tmp_path):
    picture = tmp_path / "p.png"
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(picture)
    named, image = {EVIL: EVIL}, page.Image(picture.read_bytes(), EVIL)
    contents = [
        EVIL,
        page.Panels([page.Picture(picture, EVIL, [page.Point(0.5, 0.5, EVIL)])]),
        page.Table((EVIL,), [(EVIL,)], EVIL),
        page.Card(named, named, named),
        page.Folded(EVIL, [EVIL]),
        page.Matrix((EVIL,), [[1]], {(0, 0): "a"}),
        page.Gallery([image]),
    ]
    page.write(tmp_path / "index.html", EVIL, {EVIL: contents})
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert text.count("<script") == 1  # the page's own
    # Title twice, contents, heading, paragraph; image 3, table 4, card 6, folded 2,
    # matrix 6, gallery 1.
    assert text.count("&lt;script&gt;") == 5 + 3 + 4 + 6 + 2 + 6 + 1
    # alt="..." ends where it should
    assert re.search(r'<img alt="[^"<>]*" [^<>]*src="data:image/png;[^"]+">', text)


def test_a_page_needs_no_other_file(tmp_path):
    page.write(tmp_path / "index.html", "title", {"section": ["text"]})
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert not re.findall(r'(?:src|href)="(?!data:|#)', text)
    assert "http" not in text and "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text


def test_contents_lead_to_sections_and_panels_and_folds_are_marked(tmp_path):
    table = page.Table(("a", ""), [(1, 2)], "c", is_sortable=True)
    sections = {"The first": [table], "\uacb0\uacfc": [page.Folded("more", ["text"])]}
    page.write(tmp_path / "index.html", "title", sections, lang="ko")
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert '<html lang="ko">' in text
    assert re.findall(r'<a href="#([^"]+)">', text) == ["the-first", "section-1"]
    assert re.findall(r'<section id="([^"]+)"><h2>', text) == ["the-first", "section-1"]
    assert '<thead><tr><th scope="col">a</th><td></td>' in text
    assert '<table class="sortable">' in text
    assert "<details><summary>more</summary><p>text</p></details>" in text
    assert len(text) < 15_000  # style and script and all


def write(tmp_path, *contents):
    page.write(tmp_path / "index.html", "title", {"section": contents})
    return (tmp_path / "index.html").read_text(encoding="utf-8")


def save(tmp_path, width):
    path = tmp_path / f"{width}.png"
    Image.fromarray(np.zeros((50, width, 3), np.uint8)).save(path)
    return path


def test_a_table_has_a_caption_and_its_rows_have_headers(tmp_path):
    table = page.Table(
        ("class", "images"), [("ant", 1), ("bee", 2)], "Images of <each>"
    )
    text = write(tmp_path, table)
    caption = "<table><caption><span>Images of &lt;each&gt;</span></caption><thead>"
    assert caption in text
    assert '<tr><th scope="row">bee</th><td>2</td></tr>' in text
    assert 'tabindex="0" role="group" aria-label="Images of &lt;each&gt;"' in text
    matrix = write(tmp_path, page.Matrix(("a",), [[1]], {}))
    assert "<caption><span>Confusion matrix: rows are true classes" in matrix
    assert '<th scope="row">a</th>' in matrix


def test_values_are_folded_below_their_figure(tmp_path):
    values = page.Table(("epoch", "test"), [(1, "0.5")], "Loss")
    plain = page.Picture(save(tmp_path, 90), "curve")
    assert "<details>" not in write(tmp_path, plain)
    text = write(tmp_path, page.Panels([plain._replace(values=values)]))
    assert re.search(
        r"</figure><details><summary>Values</summary><div [^>]*><table>.*"
        r'<th scope="row">1</th><td>0.5</td>.*</table></div></details>',
        text,
    )


def test_a_wide_figure_scrolls_in_its_own_box(tmp_path):
    narrow, wide = (page.Picture(save(tmp_path, width), "f") for width in (700, 1000))
    text = write(tmp_path, narrow)
    assert 'width="700" height="50"' in text
    assert 'style="min-width' not in text and 'class="scroll"' not in text
    assert re.search(
        r'<figure><div class="scroll" tabindex="0" role="group" aria-label="f">'
        r'<div class="image drawing" style="min-width: 600px"><img [^>]*width="1000"',
        write(tmp_path, wide),
    )


def test_a_dark_page_inverts_drawings_and_dims_figures_with_images(tmp_path):
    path = save(tmp_path, 90)
    drawing, images = page.Picture(path, "a"), page.Picture(path, "b", has_images=True)
    text = write(tmp_path, drawing, images)
    assert '<div class="image drawing"><img alt="a"' in text
    assert '<div class="image photos"><img alt="b"' in text
    (dark,) = re.findall(r"dark\) \{\s+\.drawing(?:.*\n){2}", text)
    assert ".drawing img { filter: invert(" in dark
    assert ".photos img { filter: brightness(" in dark
