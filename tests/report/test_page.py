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
        page.Table((EVIL,), [(EVIL,)]),
        page.Card(named, named, named),
        page.Folded(EVIL, [EVIL]),
        page.Matrix((EVIL,), [[1]], {(0, 0): "a"}),
        page.Gallery([image]),
    ]
    page.write(tmp_path / "index.html", EVIL, {EVIL: contents})
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert text.count("<script") == 1  # the page's own
    # Title twice, contents, heading, paragraph; image 3, table 2, card 6, folded 2,
    # matrix 6, gallery 1.
    assert text.count("&lt;script&gt;") == 5 + 3 + 2 + 6 + 2 + 6 + 1
    # alt="..." ends where it should
    assert re.search(r'<img alt="[^"<>]*" src="data:image/png;base64,[^"]+">', text)


def test_a_page_needs_no_other_file(tmp_path):
    page.write(tmp_path / "index.html", "title", {"section": ["text"]})
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert not re.findall(r'(?:src|href)="(?!data:|#)', text)
    assert "http" not in text and "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text


def test_contents_lead_to_sections_and_panels_and_folds_are_marked(tmp_path):
    table = page.Table(("a", ""), [(1, 2)], is_sortable=True)
    sections = {"The first": [table], "\uacb0\uacfc": [page.Folded("more", ["text"])]}
    page.write(tmp_path / "index.html", "title", sections, lang="ko")
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert '<html lang="ko">' in text
    assert re.findall(r'<a href="#([^"]+)">', text) == ["the-first", "section-1"]
    assert re.findall(r'<section id="([^"]+)"><h2>', text) == ["the-first", "section-1"]
    assert '<table class="sortable"><thead><tr><th scope="col">a</th><td></td>' in text
    assert "<details><summary>more</summary><p>text</p></details>" in text
    assert len(text) < 15_000  # style and script and all
