"""Memory and CPUs that a process may use, inside or outside a container."""

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path

_GROUPS, _MINE = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def memory() -> int:
    """Returns how many bytes of memory the machine and the control groups allow."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found = [whole]
    for folder in _folders("memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):  # cgroup v2 and v1
            with contextlib.suppress(OSError, ValueError):  # "max" is not a number
                found.append(int((folder / name).read_text()))
    return min(found)


def cpus() -> int:
    """Returns how many CPUs the affinity mask and the control group quotas allow."""
    if hasattr(os, "sched_getaffinity"):
        found = [float(len(os.sched_getaffinity(0)))]
    else:
        found = [float(os.cpu_count() or 1)]
    for folder in _folders("cpu"):
        with contextlib.suppress(OSError, ValueError):
            quota, period = (folder / "cpu.max").read_text().split()
            found.append(int(quota) / int(period))
        with contextlib.suppress(OSError, ValueError):
            quota = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
            if int(quota) > 0:
                found.append(int(quota) / int(period))
    return max(1, math.ceil(min(found)))


def _folders(controller: str) -> Iterator[Path]:
    """Yields the folders of this process's control groups and of their parents."""
    yield _GROUPS  # where a container mounts its own control group
    yield _GROUPS / controller
    try:
        lines = _MINE.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        home = _GROUPS / controller if controllers else _GROUPS
        group = Path(path.lstrip("/"))
        yield from (home / above for above in (group, *group.parents))
