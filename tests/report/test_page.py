import re

import numpy as np
from PIL import Image

from resnet_jax.report import page

EVIL = '<script>alert("x")</script>\'"&'


def test_nothing_from_outside_becomes_markup(tmp_path):
    picture = tmp_path / "p.png"
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(picture)
    contents = [EVIL, page.Picture(picture, EVIL), page.Table((EVIL,), [(EVIL,)])]
    page.write(tmp_path / "index.html", EVIL, {EVIL: contents})
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "<script" not in text and text.count("&lt;script&gt;") == 8
    # alt="..." ends where it should
    assert re.search(r'<img alt="[^"<>]*" src="data:image/png;base64,[^"]+">', text)


def test_a_page_needs_no_other_file(tmp_path):
    page.write(tmp_path / "index.html", "title", {"section": ["text"]})
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert not re.findall(r'(?:src|href)="(?!data:)', text)
    assert "http" not in text and "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text
