"""How many cores this process may use: its affinity, cut by the quota of its control group.

A container limited to two of sixty-four cores still sees sixty-four; an engine with sixty-four threads on two cores' worth of time is
throttled for most of every period, which shows as long tails of latency.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def usable_cores(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores for the threads of an engine, at least 1.  A quota of 2.5 cores counts as 2: a third thread would be throttled."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *(int(quota) for quota in _quotas(proc, cgroup))]))


def _quotas(proc: Path, cgroup: Path) -> Iterator[float]:
    """Every quota, in cores, that binds this process: its own group's and those of the groups above it."""
    for line in _read(proc / "self" / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2: one tree; cpu.max holds "quota period" or "max period"
            yield from _version_2(cgroup, path)
        elif "cpu" in controllers.split(","):  # version 1: one tree for each controller, named after it
            for root in (cgroup / controllers, cgroup / "cpu"):
                yield from _version_1(root, path)


def _version_2(root: Path, path: str) -> Iterator[float]:
    for group in _upwards(root, path):
        quota, _, period = _read(group / "cpu.max").strip().partition(" ")
        if quota.isdigit() and period.isdigit() and int(period) > 0:
            yield int(quota) / int(period)


def _version_1(root: Path, path: str) -> Iterator[float]:
    for group in _upwards(root, path):
        quota, period = _read(group / "cpu.cfs_quota_us").strip(), _read(group / "cpu.cfs_period_us").strip()
        if quota.isdigit() and period.isdigit() and int(period) > 0:  # -1 stands for no quota
            yield int(quota) / int(period)


def _upwards(root: Path, path: str) -> Iterator[Path]:
    """The group and those above it.  In a container the path may be that of the host, while the root shows the container's own group."""
    parts = [part for part in path.split("/") if part not in ("", "..")]
    for depth in range(len(parts), -1, -1):
        yield root.joinpath(*parts[:depth])


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:  # no such group, or no control groups at all
        return ""
