"""Strict JAX settings, an isolated cache, and small data sets like CIFAR-10."""

import contextlib
import ctypes
import gc
import hashlib
import itertools
import os
import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"
# Set here, so that no script restarts itself.
os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
# Many tests compile the same small programs, some in their own processes.
# pytest-xdist's workers inherit the environment of the process that starts them.
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ.get(
    "JAX_COMPILATION_CACHE_DIR"
) or tempfile.mkdtemp("-resnet_jax-tests")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
# Compiling takes two thirds of the time. The arithmetic is also tested with
# optimizations, see _optimized; JAX_DISABLE_MOST_OPTIMIZATIONS=0 enables them for all
# tests.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import hypothesis
import jax
import numpy as np
import pytest
from configs import make_config

from resnet_jax import (
    data,
    devices,
    layers,
    models,
    report,
    run,
    training,
    weights,
)
from resnet_jax.data import archives, cifar, sources
from resnet_jax.data import tfds as tfds_files
from resnet_jax.data.tfds import Arrays
from resnet_jax.models.blocks import BasicBlock
from resnet_jax.models.resnet import ResNet

jax.config.update("jax_numpy_rank_promotion", "raise")
# The time of an example depends on the machine's other load.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

# Packages cache their lazy names: resolve them now, not while a test has replaced one.
for _room in (data, devices, layers, models, report, run, training, weights):
    for _name in _room.__all__:
        getattr(_room, _name)


def pytest_unconfigure() -> None:
    cache = os.environ["JAX_COMPILATION_CACHE_DIR"]
    if "PYTEST_XDIST_WORKER" not in os.environ and cache.endswith("-resnet_jax-tests"):
        shutil.rmtree(cache, ignore_errors=True)


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)


_REAL_DATA_DIR = os.environ.get("TFDS_DATA_DIR")


@pytest.fixture(scope="session")
def tfds() -> Any:
    """tensorflow-datasets with array_record, which may be missing on a GPU machine."""
    pytest.importorskip("array_record")
    return pytest.importorskip("tensorflow_datasets")


@pytest.fixture
def real_data_dir(tfds) -> Path:
    """A tensorflow-datasets directory that holds the real CIFAR-10."""
    if not _REAL_DATA_DIR or tfds_files.find("cifar10", Path(_REAL_DATA_DIR)) is None:
        pytest.skip("no prepared CIFAR-10 in $TFDS_DATA_DIR")
    return Path(_REAL_DATA_DIR)


_MORE = 3 * 2**29  # bytes that a process may grow by before its programs are dropped
_resident_after = 0


def _resident() -> int:
    """Returns the bytes of memory of this process, or 0 if unknown."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(autouse=True)
def _bounded():
    """Clears JAX's caches if compiled programs have filled much memory."""
    global _resident_after
    yield
    if _resident() > _resident_after + _MORE:
        jax.clear_caches()
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        _resident_after = _resident()


@pytest.fixture(autouse=True)
def _isolated(tmp_path, monkeypatch):
    """Keeps tests from reading or writing the user's cache or data."""
    monkeypatch.setenv("RESNET_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))


@pytest.fixture(autouse=True)
def _optimized(request, monkeypatch):
    """Enables all of XLA's optimizations for tests marked "optimized"."""
    if request.node.get_closest_marker("optimized") is None:
        yield
        return
    before = os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1"
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def tiny(monkeypatch) -> str:
    """The name of a network small enough to train in a test."""
    return _named("tiny", (4, 8), monkeypatch)


@pytest.fixture
def one_block(monkeypatch) -> str:
    """The name of an even smaller network for whole runs, each of which traces it."""
    return _named("one_block", (4,), monkeypatch)


def _named(name: str, widths: tuple[int, ...], monkeypatch: Any) -> str:
    sizes = {"stage_sizes": (1,) * len(widths), "widths": widths}
    make = partial(ResNet, block=BasicBlock, stem="cifar", **sizes)
    monkeypatch.setitem(models.MODELS, name, make)
    return name


@pytest.fixture(scope="session")
def fake_arrays() -> Arrays:
    """50 training and 10 test images in the format of CIFAR-10."""
    rng = np.random.default_rng(0)

    def part(count: int) -> tuple[np.ndarray, np.ndarray]:
        images = rng.integers(0, 256, (count, 32, 32, 3), np.uint8)
        return images, (np.arange(count) % 10).astype(np.int32)

    return Arrays(part(50), part(10), archives.CLASS_NAMES)


@pytest.fixture
def small_cifar(fake_arrays, tfds, monkeypatch) -> Arrays:
    """Makes fake_arrays pass for the published CIFAR-10, by count and sha256."""

    def sha256(array: np.ndarray) -> str:
        return hashlib.sha256(array.tobytes()).hexdigest()

    for name in ("train", "test"):
        images, labels = getattr(fake_arrays, name)
        monkeypatch.setitem(cifar.CIFAR10.num_examples, name, len(labels))
        digests = (sha256(images), sha256(labels.astype(np.uint8)))
        monkeypatch.setitem(cifar.CIFAR10.sha256, name, digests)
    return fake_arrays


@pytest.fixture(scope="session")
def prepared_dir(fake_arrays, tfds, tmp_path_factory):
    """A tensorflow-datasets directory that holds fake_arrays as cifar10."""
    data_dir = tmp_path_factory.mktemp("tfds")
    tfds_files.write_cifar10(fake_arrays, data_dir)
    return data_dir


@pytest.fixture
def digits_run(one_block, tmp_path, monkeypatch):
    """A function that trains `one_block` on digits: fields -> (cfg, run directory)."""
    from resnet_jax.commands import train

    digits = sources.SOURCES["digits"]
    train_images, test_images = sources.load_dataset("digits")
    numbers = itertools.count()

    def use(num_train):
        few = train_images.take(slice(num_train)), test_images.take(slice(40))
        small = digits._replace(open=lambda cfg: (10, lambda: few))
        monkeypatch.setitem(sources.SOURCES, "digits", small)

    def run(num_train=128, **fields):
        use(num_train)
        cfg = make_config(
            **{
                "dataset": "digits",
                "normalize": "half",
                "batch_size": 32,
                "eval_batch_size": 40,
                "lr": 0.05,
                "workdir": str(tmp_path / f"run{next(numbers)}"),
                "model": one_block,
                "optimizer": "sgd",
                **fields,
            }
        )
        train.main(cfg)
        return cfg, Path(cfg.run.workdir)

    use(128)
    run.use = use  # images for a run that is already trained
    return run
