import mmap
import pickle

import numpy as np
import pytest

from resnet_jax.data import shared_memory


def _batch():
    rng = np.random.default_rng(0)
    return {
        "images": rng.integers(0, 256, (5, 7, 9, 3), np.uint8),
        "labels": np.arange(5),
        "turns": rng.normal(size=(5, 2)).T,  # not contiguous
    }


def test_a_batch_is_a_file_that_its_receiver_removes(tmp_path):
    sent = pickle.dumps(shared_memory.Batch(_batch(), tmp_path))
    assert len(sent) < 500 < 5 * 7 * 9 * 3
    (path,) = tmp_path.iterdir()
    assert path.stat().st_size == 3 * mmap.PAGESIZE
    received = pickle.loads(sent).content
    assert not list(tmp_path.iterdir())
    for name, array in _batch().items():
        assert received[name].dtype == array.dtype
        np.testing.assert_array_equal(received[name], array, strict=True)


@pytest.mark.parametrize("content", [{"pid": 3}, [1, 2]])
def test_what_is_not_of_arrays_goes_through_the_pipe(tmp_path, content):
    received = pickle.loads(pickle.dumps(shared_memory.Batch(content, tmp_path)))
    assert not list(tmp_path.iterdir()) and received.content == content


def test_without_a_folder_a_batch_goes_through_the_pipe():
    received = pickle.loads(pickle.dumps(shared_memory.Batch(_batch(), None)))
    assert pickle.dumps(received.content) == pickle.dumps(_batch())


def test_a_batch_that_does_not_fit_leaves_no_file(tmp_path, monkeypatch):
    class Full:
        def __init__(self, descriptor, *args, **options):
            self.file = open(descriptor, *args, **options)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def write(self, data):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(shared_memory, "open", Full, raising=False)
    sent = pickle.dumps(shared_memory.Batch(_batch(), tmp_path))
    assert not list(tmp_path.iterdir()) and len(sent) > 5 * 7 * 9 * 3


def test_the_folder_goes_with_what_is_in_it(tmp_path, monkeypatch):
    monkeypatch.setattr(shared_memory, "_SHARED_MEMORY", tmp_path)
    with shared_memory.folder() as directory:
        pickle.dumps(shared_memory.Batch(_batch(), directory))
        assert len(list(directory.iterdir())) == 1
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(shared_memory, "_SHARED_MEMORY", tmp_path / "none")
    with shared_memory.folder() as directory:
        assert directory is None
