import os
import subprocess
import sys

import pytest
from spawn import ROOT

from resnet_jax.commands import hugepages

CODE = (
    "import os, sys\n"
    "from resnet_jax.commands.hugepages import start_with_huge_pages\n"
    "start_with_huge_pages()\n"
    "print(os.getpid(), os.environ.get('GLIBC_TUNABLES'), sys.argv[1:])\n"
)


@pytest.fixture
def environ(monkeypatch):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    if not hugepages._are_on_request():
        pytest.skip("this system does not provide huge pages on request")
    return os.environ


@pytest.mark.parametrize(
    "before, after",
    [
        (None, "glibc.malloc.hugetlb=1"),
        ("glibc.malloc.check=0", "glibc.malloc.check=0:glibc.malloc.hugetlb=1"),
        ("glibc.malloc.hugetlb=0", "glibc.malloc.hugetlb=0"),
    ],
)
def test_a_program_starts_anew_once_with_its_arguments(environ, before, after):
    variables = {**environ, **({"GLIBC_TUNABLES": before} if before else {})}
    with subprocess.Popen(
        [sys.executable, "-c", CODE, "a b", "--c"],
        cwd=ROOT,
        env=variables,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        out = process.communicate(timeout=60)[0]
    assert out == f"{process.pid} {after} ['a b', '--c']\n"  # the same process


def test_nothing_happens_where_there_are_none(monkeypatch, tmp_path):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setattr(hugepages, "_SETTING", tmp_path / "none")
    monkeypatch.setattr(os, "execve", lambda *args: pytest.fail("restarted"))
    hugepages.start_with_huge_pages()
    (tmp_path / "none").write_text("[always] madvise never\n")
    hugepages.start_with_huge_pages()
