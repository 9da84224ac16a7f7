import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from configs import make_config
from PIL import Image
from spawn import ROOT, digests, lines, said

from resnet_jax import data, fields
from resnet_jax.commands import evaluate, train
from resnet_jax.commands.evaluate import EvaluateConfig
from resnet_jax.config import DataConfig
from resnet_jax.data import folder, pillow, readers, shared_memory, stream
from resnet_jax.devices.mesh import make_mesh
from resnet_jax.errors import ConfigError, DataError

pytest.importorskip("grain")


@pytest.fixture
def root(tmp_path):
    """Makes a folder of 26 + 10 images of many sizes, in two classes."""
    rng = np.random.default_rng(0)
    root = tmp_path / "images"
    for split, count in (("train", 13), ("test", 5)):
        for name in ("ant", "bee"):
            home = root / split / name
            home.mkdir(parents=True)
            for number in range(count):
                height, width = rng.integers(8, 20, 2)
                pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
                Image.fromarray(pixels).save(home / f"{number:02d}.png")
    return root


def test_images_are_read_when_they_are_asked_for(root, monkeypatch):
    sizes = {"size": 8, "crop_pct": 0.875}
    split = folder.scan(root).splits[0]
    images, labels = folder.load(split, **sizes)
    read = pillow.read_image
    asked = []

    def noted(path, **options):
        asked.append(path)
        return read(path, **options)

    monkeypatch.setattr(pillow, "read_image", noted)
    streamed, same_labels = readers.from_folder(split, **sizes)
    np.testing.assert_array_equal(labels, same_labels)
    assert streamed.shape == images.shape and streamed.nbytes == images.nbytes
    some = streamed[[3, 25, 4]][1:]
    assert asked == []
    np.testing.assert_array_equal(np.asarray(some), images[[25, 4]])
    assert len(asked) == 2
    parts = [data.Dataset(x, labels, ("ant", "bee")) for x in (images, streamed)]
    cfg = DataConfig(eval_batch_size=8)
    loader = data.Loader(
        make_mesh(1), data.Splits(*parts, parts[0], {}), cfg, held=False
    )
    both = (loader.evaluation(part) for part in parts)
    for batch, same in zip(*both, strict=True):
        np.testing.assert_array_equal(same["images"], batch["images"])


def test_records_are_read_in_the_order_of_their_ids(prepared_dir, small_cifar):
    parts = data.load_dataset("cifar10", prepared_dir, stream=True)
    whole = (small_cifar.train, small_cifar.test)
    for part, (images, labels) in zip(parts, whole, strict=True):
        assert isinstance(part.images, stream.Images)
        assert part.class_names == small_cifar.class_names
        np.testing.assert_array_equal(part.labels, labels)
        np.testing.assert_array_equal(np.asarray(part.images[::-1]), images[::-1])


SIGNALS = {signal.SIGINT, signal.SIGTERM}


class Squares:
    def __len__(self):
        return 11

    def __getitem__(self, number):
        if number == 8:
            raise DataError("eight cannot be read")
        return {
            "images": np.full(3, number**2),
            "pid": os.getpid(),
            "blocked": signal.pthread_sigmask(signal.SIG_BLOCK, ()) & SIGNALS,
            "ignored": {n for n in SIGNALS if signal.getsignal(n) == signal.SIG_IGN},
        }


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.process)])
def test_what_is_read_ahead_keeps_its_order_and_its_errors(workers):
    seen = []
    with pytest.raises(DataError, match="eight cannot be read"):
        for item in stream.prefetched(Squares(), workers):
            seen.append(item)
            for number in SIGNALS if workers else ():
                os.kill(item["pid"], number)
    assert [item["images"].tolist() for item in seen] == [[n**2] * 3 for n in range(8)]
    pids = {item["pid"] for item in seen}
    assert len(pids) == max(workers, 1)
    assert (os.getpid() in pids) == (workers == 0)
    # Workers never receive signals; this process does, as before. A test suite that
    # a script runs in the background may itself ignore SIGINT.
    ignored = {n for n in SIGNALS if signal.getsignal(n) == signal.SIG_IGN}
    for item in seen:
        assert item["blocked"] == (SIGNALS if workers else set())
        assert item["ignored"] == (SIGNALS if workers else ignored)
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & SIGNALS


def test_a_batch_that_is_removed_from_shared_memory_is_read_again(
    tmp_path, monkeypatch
):
    sent = pickle.dumps(shared_memory.Batch({"images": np.zeros(5)}, tmp_path))
    (path,) = tmp_path.iterdir()
    path.unlink()
    lost = pickle.loads(sent)

    def batch(batches, number):
        return lost if number == 2 else shared_memory.Batch(number, None)

    monkeypatch.setattr(shared_memory.Batches, "__getitem__", batch)
    assert list(stream.prefetched([5, 6, 7, 8], 0)) == [0, 1, 7, 3]


@pytest.mark.process
def test_workers_end_with_a_process_that_is_killed(tmp_path):
    code = (
        "import os, signal\n"
        "import numpy as np\n"
        "from resnet_jax.data import stream\n"
        "class Pids:\n"
        "    def __len__(self):\n"
        "        return 8\n"
        "    def __getitem__(self, number):\n"
        "        return {'pid': np.full(100, os.getpid())}\n"
        "for batch in stream.prefetched(Pids(), 1):\n"
        "    print(batch['pid'][0], flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    place = Path("/dev/shm")
    before = set(place.glob("resnet_jax-*"))
    path = tmp_path / "pid"
    with path.open("w") as out:  # the worker would keep a pipe open
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=out)
    assert done.returncode == -signal.SIGKILL
    worker = Path("/proc", path.read_text().strip(), "stat")
    for _ in range(100):
        if not worker.exists() or worker.read_text().rsplit(") ")[1][0] == "Z":
            assert set(place.glob("resnet_jax-*")) <= before
            return
        time.sleep(0.1)
    os.kill(int(worker.parent.name), signal.SIGKILL)
    raise AssertionError("the worker went on")


def config(one_block, root, workdir, **others):
    own = {
        "model": one_block,
        "dataset": "folder",
        "data_dir": str(root),
        "image_size": 8,
        "normalize": "half",
        "epochs": 2,
        "batch_size": 8,
        "eval_batch_size": 4,
        "optimizer": "sgd",
        "lr": 0.05,
        "flip": "random",
        "workdir": str(workdir),
    }
    return make_config(**{**own, **others})


@pytest.mark.process
@pytest.mark.parametrize("workers", [0, 1])
def test_a_streamed_run_is_one_in_memory_to_the_bit(workers, one_block, root, tmp_path):
    train.main(config(one_block, root, tmp_path / "memory"))
    train.main(
        config(one_block, root, tmp_path / "stream", stream=True, workers=workers)
    )
    assert digests(tmp_path / "stream") == digests(tmp_path / "memory")
    assert lines(tmp_path / "stream") == lines(tmp_path / "memory")


@pytest.mark.process
def test_a_streamed_run_goes_on_in_memory_and_back(
    one_block, root, tmp_path, monkeypatch
):
    whole = config(one_block, root, tmp_path / "whole")
    train.main(whole)
    limits = {"override": True, "workdir": str(tmp_path / "parts")}
    for max_steps, streamed in ((2, True), (5, False), (8, True)):
        part = config(one_block, root, "", stream=streamed, workers=0)
        train.main(fields.replace(part, **limits, max_steps=max_steps))
    assert digests(tmp_path / "parts")[:2] == digests(tmp_path / "whole")[:2]


@pytest.mark.process
def test_a_streamed_probe_is_trained_and_reported(
    one_block, root, tmp_path, monkeypatch, capsys
):
    cfg = config(one_block, root, tmp_path / "run", epochs=1, flip="none")
    frozen = {"freeze": "backbone", "backbone_bn": "frozen", "cache_features": True}
    train.main(fields.replace(cfg, stream=True, workers=0, **frozen))
    # As if the test images did not fit in memory.
    monkeypatch.setattr(stream, "is_large", lambda num_bytes: True)
    evaluate.main(EvaluateConfig(run=cfg.run.workdir, report=True))
    page = tmp_path / "run" / "report" / "index.html"
    assert f"report: {page}" in capsys.readouterr().out
    assert page.is_file()


def test_a_folder_that_would_not_fit_is_streamed(root, monkeypatch):
    monkeypatch.setattr(stream, "is_large", lambda num_bytes: num_bytes > 1000)
    loaded, _ = data.load_dataset("folder", root, image_size=8)
    assert isinstance(loaded.images, stream.Images)
    with pytest.raises(ConfigError, match="read during training: skip bad images with"):
        data.load_dataset("folder", root, skip_bad_images=True)


def test_digits_are_not_streamed():
    with pytest.raises(ConfigError, match="digits fit"):
        data.load_dataset("digits", stream=True)


@pytest.mark.process
def test_an_image_that_cannot_be_read_ends_training_in_one_line(root, tmp_path):
    bad = root / "train" / "bee" / "07.png"
    bad.write_bytes(b"no image")
    command = [sys.executable, "train.py", "digits", "--model", "resnet8"]
    command += ["--dataset", "folder", "--data-dir", str(root), "--stream"]
    command += ["--image-size", "8", "--batch-size", "8", "--workers", "1"]
    command += ["--workdir", str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    (line,) = said(done.stderr)
    assert f"{bad} cannot be read" in line


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_its_processes_stops_a_streamed_run(number, root, tmp_path):
    """Signals all processes, like Ctrl-C in a terminal, or a scheduler does.

    The signal arrives while the main process waits for a worker with large images.
    """
    for path in root.glob("train/*/*"):
        Image.new("RGB", (1500, 1500)).save(path)
    command = [sys.executable, "train.py", "digits", "--model", "resnet8"]
    command += ["--dataset", "folder", "--data-dir", str(root), "--stream"]
    command += ["--image-size", "8", "--batch-size", "4", "--workers", "1"]
    command += ["--epochs", "5000", "--workdir", str(tmp_path / "run")]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout.readline().startswith("epoch   1")
        time.sleep(0.3)
        os.killpg(process.pid, number)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 75, errors
    (line,) = said(errors)
    assert f"stopped by {number.name}, saved at step" in line
