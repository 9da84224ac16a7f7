import os

import pytest

from resnet_jax import limits
from resnet_jax.data import stream
from resnet_jax.devices import mesh

MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """Replaces the control groups with these files, with the process in `mine`."""
    monkeypatch.setattr(limits, "_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(limits, "_MINE", tmp_path / "mine")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))

    def write(mine, found):
        if mine is not None:
            (tmp_path / "mine").write_text(mine)
        for name, text in found.items():
            path = tmp_path / "groups" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return write


@pytest.mark.parametrize(
    ("mine", "found", "memory"),
    [
        (None, {}, MACHINE),
        ("0::/\n", {"memory.max": "4096\n"}, 4096),
        ("0::/\n", {"memory.max": "max\n"}, MACHINE),
        (None, {"memory.max": "4096\n"}, 4096),
        ("0::/a/b\n", {"a/b/memory.max": "max\n", "a/memory.max": "3000\n"}, 3000),
        ("0::/a/b\n", {"a/b/memory.max": "2000\n", "a/memory.max": "3000\n"}, 2000),
        ("0::/a\n", {"b/memory.max": "2000\n"}, MACHINE),
        ("0::/a:b\n", {"a:b/memory.max": "2000\n"}, 2000),
        ("4:memory:/x\n", {"memory/memory.limit_in_bytes": "5000\n"}, 5000),
        ("4:cpu,memory:/x\n", {"memory/x/memory.limit_in_bytes": "6000\n"}, 6000),
        ("4:cpu:/x\n", {"memory/x/memory.limit_in_bytes": "6000\n"}, MACHINE),
        (
            "1:name=systemd:/\n4:memory:/x\n0::/y\n",
            {"memory/x/memory.limit_in_bytes": f"{2**63 - 4096}\n"},
            MACHINE,
        ),
    ],
)
def test_memory_is_the_smallest_of_the_limits(groups, mine, found, memory):
    groups(mine, found)
    assert limits.memory() == memory


@pytest.mark.parametrize(
    ("mine", "found", "cpus"),
    [
        (None, {}, 8),
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "1000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 8),
        ("0::/\n", {"cpu.max": "6400000 100000\n"}, 8),
        ("0::/a/b\n", {"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}, 3),
        (
            "3:cpu,cpuacct:/x\n",
            {"cpu/x/cpu.cfs_quota_us": "400000", "cpu/x/cpu.cfs_period_us": "100000"},
            4,
        ),
        (
            "3:cpu,cpuacct:/x\n",
            {"cpu/x/cpu.cfs_quota_us": "-1\n", "cpu/x/cpu.cfs_period_us": "100000\n"},
            8,
        ),
    ],
)
def test_cpus_are_what_the_quota_is_worth(groups, mine, found, cpus):
    groups(mine, found)
    assert limits.cpus() == cpus


def test_what_is_large_and_what_fits_follow_the_container(monkeypatch):
    one = mesh.make_mesh(1)
    monkeypatch.setattr(limits, "memory", lambda: 1000)
    assert [stream.is_large(size) for size in (500, 501)] == [False, True]
    assert [mesh.fits(size, one) for size in (200, 201)] == [True, False]
    monkeypatch.setattr(limits, "memory", lambda: 4000)
    assert not stream.is_large(501) and mesh.fits(201, one)
