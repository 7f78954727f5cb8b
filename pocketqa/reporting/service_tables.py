"""The tables of the service: its race against plain servers, how many times better it is, and how its cost grows."""

from __future__ import annotations

from collections.abc import Callable

from pocketqa.reporting.mobile_tables import busy_lines, joined, table_if_any
from pocketqa.reporting.tables import Runs, filled_table, interval, model_cell, of_kind, processor
from pocketqa.runs import RunFile, judge, verdict
from pocketqa.service_results import contestants_of
from pocketqa.statistics import Interval
from pocketqa.types import JSON

Link = Callable[[str, RunFile], str]

POINT_HEAD = (
    "users", "contestant", "p50", "p99", "answers a second [95 %]", "EM", "F1", "answers of A in fp32", "same span as alone [95 %]", "failures",
    "CPU of the server", "CPU of the client",
)  # fmt: skip
RATIO_HEAD = ("users", "against", "p50: times faster [95 %]", "p99: times faster [95 %]", "times as many answers a second [95 %]")
BAR_HEAD = ("wanted", "least", "found [95 %]", "verdict")
COST_HEAD = ("model", "tokens", "windows", "client", "tokenise", "queue", "forward", "decode", "HTTP, JSON and between the processes")
TAIL = 300  # questions from which a p99 is told with an interval: it is then that of at least three
OF = {"p50": "times faster at the median", "p99": "times faster at the 99th percentile", "rate": "times as many answers a second"}


def service_lines(runs: Runs, link: Link) -> list[str]:
    """For each race, the newest first, the contestants, their times, the ratios, what was wanted, and the costs."""
    parts: list[list[str]] = []
    for name, run in sorted(of_kind(runs, "service").items(), key=lambda item: item[1].created, reverse=True):
        r = run.results
        models = ", ".join(map(model_cell, run.subjects))
        machine = f"On {processor(run)}, {run.created[:10]}"
        parts.append([f"{machine}. {models}: {r['workload']}. {_where(r)} {link(name, run)}"])
        parts.append([f"- {who}: {words}" for who, words in contestants_of(r).items()])
        random = r.get("origin") == "configuration"
        parts.append(filled_table(POINT_HEAD, [_point_row(row, random) for row in r["points"]]))
        parts.append(table_if_any(RATIO_HEAD, _ratio_rows(r)))
        parts.append(table_if_any(BAR_HEAD, _bar_rows(r)))
        parts.append(table_if_any(COST_HEAD, [_cost_row(row) for row in r["costs"]]))
        parts.append([*_remarks(r), *busy_lines(run)])
    return joined(parts)


def _where(results: JSON) -> str:
    cores = results.get("cores", {})
    pinned = f"Servers on {cores['servers']} and client on {cores['client']} cores of their own." if cores.get("client") else ""
    origin = "Weights are random, made from the configuration: answers and scores mean nothing." if results.get("origin") == "configuration" else ""
    return " ".join(part for part in (pinned, origin) if part)


def _point_row(row: JSON, random: bool) -> tuple[str, ...]:
    """random: answers of random weights say whether batches change them, and nothing else."""
    times = (f"{row[key]:.2f} ms" for key in ("p50", "p99"))
    rate = _of_rounds(row["rate"])
    same = f"{row['same_answers']:.1f} %" if "same_answers" in row else ""
    scores = ("", "", "") if random else (f"{row['exact_match']:.2f}", f"{row['f1']:.2f}", same)
    alone = f"{_of_rounds(row['same_spans'])} %" if "same_spans" in row else ""
    shares = (f"{row[key]:.0%}" for key in ("server_share", "client_share"))
    return (str(row["users"]), row["contestant"], *times, rate, *scores, alone, f"{row['failures']:,}", *shares)


def _of_rounds(found: JSON) -> str:
    """A number alone where nothing that was drawn differed: one round, or all alike."""
    return interval(Interval.from_json(found)) if found["low"] < found["high"] else f"{found['value']:.2f}"


def _ratio_rows(results: JSON) -> list[tuple[str, ...]]:
    found: dict[tuple[int, str], dict[str, str]] = {}
    few = any(row["count"] < TAIL * results.get("rounds", 1) for row in results["points"])
    for row in results["ratios"]:
        said = f"{row['value']:.2f}" if few and row["of"] == "p99" else _of_rounds(row)
        found.setdefault((row["users"], row["against"]), {})[row["of"]] = said
    return [(str(users), against, *(cells.get(of, "") for of in OF)) for (users, against), cells in found.items()]


def _bar_rows(results: JSON) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for bar in results["bars"]:
        if (row := judge(results, bar)) is not None:
            against = "the better of the plain servers" if bar["against"] == "A" else bar["against"]
            wanted = f"against {against}, {bar['users']} user{'s' if bar['users'] > 1 else ''}: {OF[bar['of']]}"
            found = f"{interval(Interval.from_json(row))} ({row['against']})"
            rows.append((wanted, f"{bar['least']:g}", found, verdict(row, bar["least"])))
    return rows


def _cost_row(row: JSON) -> tuple[str, ...]:
    times = (f"{row[key]:.2f} ms" for key in ("client_ms", "tokenise_ms", "queue_ms", "forward_ms", "decode_ms", "rest_ms"))
    return (row.get("role", ""), f"{row['tokens']:,}", f"{row['windows']:,}", *times)


def _remarks(results: JSON) -> list[str]:
    said = []
    if rate := results.get("matrix_rate"):
        shares = (f"{who} {reached:.3f} TFLOP/s ({reached / rate['measured']['bf16']:.0%})" for who, reached in rate["reached"].items())
        said.append(
            f"- Reached at each contestant's best rate, of the {rate['measured']['bf16']:.3f} TFLOP/s that products of large bf16 matrices have on "
            f"the servers' cores (fp32: {rate['measured']['fp32']:.3f}): {', '.join(shares)}."
        )
    if memory := results.get("memory_mib"):
        said.append(
            f"- Resident memory after the race, all processes of a server together: {', '.join(f'{k} {v:,} MiB' for k, v in memory.items())}."
        )
    return said
