"""Sizes and races as Markdown, for the terminal."""

from __future__ import annotations

import shutil

from mobile_export.timing.latency import STAGES
from pocketqa.reporting.mobile_tables import added_memory, padding_remarks, threads_cell
from pocketqa.reporting.tables import interval, table
from pocketqa.statistics import Interval
from pocketqa.types import JSON

MEGABYTE = 1e6
RATIO_HEAD = ("ratio: how many times longer the first takes", "p50 [95 %]", "p90", "forward p50", "verdict")
RACE_HEAD = ("contestant", "p90 ms", "p50", "mean", *STAGES, "load cold s", "warm s", "first query s", "peak MiB", "of that added MiB")


def megabytes(count: int) -> str:
    """ "66.4": of 10^6 bytes."""
    return f"{count / MEGABYTE:.1f}"


def threads_text(count: int) -> str:
    """ "1 thread", "2 threads" """
    return f"{count} {'thread' if count == 1 else 'threads'}"


def threads_or_unit(threads: int, unit: str) -> str:
    """ "2 threads", or "compute unit ne" where Core ML decides on its threads."""
    return f"compute unit {unit}" if unit else threads_text(threads)


def size_lines(sizes: dict[str, JSON]) -> list[str]:
    """Files of each contestant, and bytes by precision of each number of parameters."""
    rows = [(label, *(megabytes(found[key]) for key in ("package", "weights", "zipped"))) for label, found in sizes.items()]
    lines = ["", *table(("sizes in MB (10^6 bytes)", "package", "weights", "zipped"), rows)]
    counted: dict[int, dict[str, int]] = {found["parameters"]: found["by_precision"] for found in sizes.values() if "parameters" in found}
    if counted:
        head = ("parameters x bits / 8, in MB", *next(iter(counted.values())))
        lines += ["", *table(head, [(f"{count:,}", *map(megabytes, by.values())) for count, by in counted.items()])]
    return lines


def race_lines(results: JSON) -> list[str]:
    """Rules, times, ratios, remarks, and the flag of a busy machine."""
    rules = results["rules"]
    state = "valid" if rules["valid"] else f"NOT VALID: {'; '.join(rules['problems'])}"
    lines = ["", results["workload"], f"{threads_cell(results)}, {results['mode']}: {state}", ""]
    lines += table(RACE_HEAD, [_row(results, label) for label in results["timings"]])
    if results["ratios"]:
        lines += ["", *table(RATIO_HEAD, [_ratio_row(results, name) for name in results["ratios"]])]
    warm_ups = {label: found for label, found in results["warm_up"].items() if isinstance(found, dict)}
    lines += [f"{label}: its times had not settled after {found['queries']} queries" for label, found in warm_ups.items() if not found["steady"]]
    return [*lines, *padding_remarks(results), *results.get("remarks", []), *busy_lines(results)]


def busy_lines(results: JSON) -> list[str]:
    """The flag of a busy machine, loud; nothing for a quiet one."""
    if not results["busy"]:
        return []
    bar = "!" * min(shutil.get_terminal_size().columns, 100)
    return ["", bar, "BUSY MACHINE: do not trust these times.", *(f"  {reason}" for reason in results["load"]["reasons"]), bar]


def _row(results: JSON, label: str) -> list[str]:
    timing, loads = results["timings"][label], results["load_seconds"][label]
    times = [timing["p90"], timing["p50"], timing["mean"], *(results["stages"][label][stage]["p50"] for stage in STAGES)]
    memory = results["peak_memory_mib"][label]
    rest = (loads["cold"], loads["warm"], results["first_run_seconds"][label]["cold"], memory["peak"], added_memory(memory))
    return [label, *(f"{value:.2f}" for value in times), *("" if value is None else f"{value:.2f}" for value in rest)]


def _ratio_row(results: JSON, name: str) -> list[str]:
    found = (interval(Interval.from_json(results[key][name])) for key in ("ratios", "p90_ratios", "forward_ratios"))
    return [name, *found, results["verdicts"][name]]
