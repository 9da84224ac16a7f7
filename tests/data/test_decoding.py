import threading

import numpy as np
from PIL import Image

from resnet_jax.data import decoding, pillow

HOW = {"size": 8, "crop_pct": 1.0}


def test_files_come_in_batches_in_their_order(tmp_path):
    paths = []
    for index in range(7):
        paths.append(tmp_path / f"{index}.png")
        Image.fromarray(np.full((8, 8, 3), index, np.uint8)).save(paths[-1])
    paths[2].write_text("<html>")
    paths[5].unlink()
    paths[6].unlink()
    found = list(decoding.read_batches(paths, 3, **HOW))
    assert [batch.paths for batch in found] == [paths[:2], paths[3:5], []]
    assert [[path for path, _ in batch.bad] for batch in found] == [
        [paths[2]], [paths[5]], [paths[6]]
    ]  # fmt: skip
    assert "cannot identify" in found[0].bad[0][1]
    assert "No such file" in found[1].bad[0][1]
    assert [batch.images[:, 0, 0, 0].tolist() for batch in found] == [
        [0, 1],
        [3, 4],
        [],
    ]
    assert {batch.images.shape[1:] for batch in found} == {(8, 8, 3)}
    assert {batch.images.dtype.name for batch in found} == {"uint8"}
    assert list(decoding.read_batches([], 3, **HOW)) == []


def test_only_the_next_batch_is_read_ahead(tmp_path, monkeypatch):
    read, lock = [], threading.Lock()

    def note(path, **how):
        with lock:
            read.append(path)
        return np.zeros((8, 8, 3), np.uint8)

    monkeypatch.setattr(pillow, "read_image", note)
    paths = [tmp_path / str(index) for index in range(20)]
    for number, _ in enumerate(decoding.read_batches(paths, 4, **HOW), start=1):
        assert set(paths[: 4 * number]) <= set(read) <= set(paths[: 4 * number + 4])
