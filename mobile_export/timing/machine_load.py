"""Which cores a benchmark takes, and whether it had them to itself.

Linux says it all in /proc and /sys; elsewhere only the load average is known, and the rest counts as not measured.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pocketqa.types import JSON

MAX_LOAD = 0.3  # load average a core before the run
MAX_OTHERS = 0.1  # share of the machine's cores that other processes used during the run
MAX_STEAL = 0.01  # share of the time that the hypervisor gave to other machines
MAX_WAITED = 0.02  # seconds a contestant's threads waited for a core, for each second that they computed
MAX_DRIFT = 0.05  # change of the median between the first and the second half of a run
MAX_SPREAD = 0.15  # by how much the 90th percentile of equal queries exceeds their median


@dataclass(frozen=True, slots=True)
class Load:
    """What else went on while contestants were timed; None for what this system does not say.

    average: load a core (1 minute) before the run; others: share of all cores used by other processes; steal: share of time taken by the
    hypervisor; waited: seconds that threads of contestants waited for a core, for each second of computing; throttled: seconds in which a CPU
    quota stopped this control group; drift, spread: the largest among the contestants, as the limits above define them.
    """

    average: float | None = None
    others: float | None = None
    steal: float | None = None
    waited: float | None = None
    throttled: float | None = None
    drift: float | None = None
    spread: float | None = None

    def reasons(self) -> list[str]:
        """Why the machine counts as busy; empty for a quiet one."""
        limits = (
            (self.average, MAX_LOAD, "the load average before the run was {:.2f} a core"),
            (self.others, MAX_OTHERS, "other processes used {:.0%} of the machine"),
            (self.steal, MAX_STEAL, "the hypervisor took {:.1%} of the time"),
            (self.waited, MAX_WAITED, "the contestants waited for a core for {:.1%} of their computing time"),
            (self.throttled, 0.0, "a CPU quota stopped this group for {:.2f} s"),
            (self.drift, MAX_DRIFT, "a median moved by {:.0%} between the halves of the run"),
            (self.spread, MAX_SPREAD, "equal queries differed: the 90th percentile is {:.0%} above the median"),
        )
        return [sentence.format(value) for value, limit, sentence in limits if value is not None and value > limit]

    def to_json(self) -> JSON:
        """The figures, and the flag with its reasons."""
        figures = {name: None if value is None else round(value, 4) for name, value in asdict(self).items()}
        reasons = self.reasons()
        return {"busy": bool(reasons), "reasons": reasons, **figures}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Counters of the machine at one moment, in seconds."""

    wall: float
    own: float  # CPU of this process and of its children that have ended
    busy: float | None  # CPU of everybody, all cores
    steal: float | None
    throttled: float | None

    @classmethod
    def take(cls) -> Snapshot:
        """Now."""
        own = sum(usage.ru_utime + usage.ru_stime for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))
        busy, steal = _processor_seconds()
        return cls(time.monotonic(), own, busy, steal, _throttled_seconds())

    def until(self, later: Snapshot, *, cores: int, average: float | None, waited: float | None, drift: float | None, spread: float | None) -> Load:
        """The load between two moments; the contestants' processes have ended by the later one, so that their time counts as ours."""
        available = cores * max(later.wall - self.wall, 1e-9)

        def share(before: float | None, after: float | None, own: float = 0.0) -> float | None:
            return None if before is None or after is None else max(0.0, (after - before - own) / available)

        throttled = None if self.throttled is None or later.throttled is None else later.throttled - self.throttled
        others = share(self.busy, later.busy, later.own - self.own)
        return Load(average, others, share(self.steal, later.steal), waited, throttled, drift, spread)


def load_average() -> float | None:
    """The load average of the last minute, for each core of the machine."""
    try:
        return os.getloadavg()[0] / machine_cores()
    except (OSError, AttributeError):
        return None


def machine_cores() -> int:
    """All cores of the machine, whether this process may use them or not."""
    return os.cpu_count() or 1


def pick_cores(count: int, siblings: Path = Path("/sys/devices/system/cpu")) -> tuple[int, ...]:
    """`count` of the cores that this process may use, of different physical cores as far as there are; none where the system cannot pin."""
    if not hasattr(os, "sched_getaffinity"):
        return ()
    allowed = sorted(os.sched_getaffinity(0))
    groups: dict[str, list[int]] = {}
    for core in allowed:
        groups.setdefault(_siblings(siblings, core), []).append(core)
    ordered = [group[i] for i in range(max(map(len, groups.values()))) for group in groups.values() if i < len(group)]
    return tuple(sorted(ordered[:count]))


def drift(costs: Sequence[float] | NDArray[np.float64]) -> float | None:
    """Relative change of the median between the halves of a run, None for fewer than 16 values."""
    if len(costs) < 16:
        return None
    middle = len(costs) // 2
    first, second = float(np.median(costs[:middle])), float(np.median(costs[middle:]))
    return abs(second / first - 1)


def spread(costs: Sequence[float] | NDArray[np.float64]) -> float | None:
    """By how much the 90th percentile exceeds the median, None for fewer than 16 values."""
    if len(costs) < 16:
        return None
    median, high = np.percentile(costs, (50, 90))
    return float(high / median - 1)


def _processor_seconds() -> tuple[float | None, float | None]:
    """CPU seconds used by everybody, and seconds stolen by the hypervisor, over all cores since the machine started."""
    fields = _read(Path("/proc/stat")).partition("\n")[0].split()
    if len(fields) < 9 or fields[0] != "cpu":
        return None, None
    user, nice, system, _idle, _iowait, interrupts, soft, steal = (int(field) / os.sysconf("SC_CLK_TCK") for field in fields[1:9])
    return user + nice + system + interrupts + soft, steal


def _throttled_seconds() -> float | None:
    """Seconds in which the CPU quota of our control group (version 2) stopped it."""
    group = next((line.split("::")[1] for line in _read(Path("/proc/self/cgroup")).splitlines() if line.startswith("0::")), None)
    if group is None:
        return None
    for folder in (Path("/sys/fs/cgroup") / group.lstrip("/"), Path("/sys/fs/cgroup")):
        for line in _read(folder / "cpu.stat").splitlines():
            if line.startswith("throttled_usec"):
                return int(line.split()[1]) / 1e6
    return None


def _siblings(root: Path, core: int) -> str:
    return _read(root / f"cpu{core}" / "topology" / "thread_siblings_list").strip() or str(core)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError:
        return ""
