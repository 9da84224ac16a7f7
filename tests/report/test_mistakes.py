import base64
import io

import numpy as np
import pytest
from PIL import Image

from resnet_jax.report import mistakes, page


@pytest.mark.parametrize("channels", [1, 3])
def test_a_frequent_confusion_leads_to_its_most_confident_mistakes(channels, tmp_path):
    labels = np.array([0, 0, 0, 0, 1, 2])
    predicted = np.array([1, 1, 1, 0, 2, 2])
    confidence = np.array([0.5, 0.9, 0.7, 0.8, 0.6, 0.95])
    probabilities = np.full((6, 3), 0.01)
    probabilities[np.arange(6), predicted] = confidence
    images = np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1)
    images = np.broadcast_to(images, (6, 200, 100, channels)).copy()
    confusion = [[1, 3, 0], [0, 0, 1], [0, 0, 1]]
    matrix, (gallery,) = mistakes.contents(
        probabilities, images, labels, ("ant", "bee", "cow"), confusion
    )
    assert matrix.links == {(0, 1): "mistake-0-1", (1, 2): "mistake-1-2"}
    assert [image.id for image in gallery.images] == ["mistake-0-1", "", "mistake-1-2"]
    assert gallery.images[0].caption == "bee 90.0 %\ntrue: ant"
    shown = [Image.open(io.BytesIO(image.png)) for image in gallery.images]
    assert [np.asarray(image).max() for image in shown] == [1, 2, 4]
    assert shown[0].size == (48, 96)

    page.write(tmp_path / "p.html", "t", {"a": [matrix], "b": [gallery]})
    text = (tmp_path / "p.html").read_text()
    assert (
        '<a href="#mistake-0-1" title="3 of 4 ant images predicted as bee">3</a>'
        in text
    )
    assert '<li id="mistake-0-1">' in text and text.count('id="mistake-') == 2
    assert base64.b64encode(gallery.images[1].png).decode() in text
    assert "--share: 0.56" in text  # 3 of 4, times .75


def test_without_mistakes_there_is_no_gallery():
    probabilities, labels = np.eye(2), np.arange(2)
    images = np.zeros((2, 4, 4, 3), np.uint8)
    matrix, shown = mistakes.contents(
        probabilities, images, labels, ("a", "b"), [[1, 0], [0, 1]]
    )
    assert not matrix.links and not shown


def test_no_more_images_than_a_page_holds(monkeypatch):
    monkeypatch.setattr(mistakes, "_MOST", 3)
    labels = np.repeat(np.arange(4), 2)
    probabilities = np.eye(4)[(labels + 1) % 4]
    confusion = np.zeros((4, 4), int)
    np.add.at(confusion, (labels, (labels + 1) % 4), 1)
    images = np.zeros((8, 4, 4, 3), np.uint8)
    matrix, (gallery,) = mistakes.contents(
        probabilities, images, labels, "abcd", confusion.tolist()
    )
    assert len(matrix.links) == 1 and len(gallery.images) == 2
