"""The tables of the zoo: small relatives of BERT, counted and timed here, beside what their papers publish."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pocketqa.reporting.mobile_tables import Link, busy_lines, joined, megabytes, rules_text, table_if_any
from pocketqa.reporting.tables import Runs, interval, of_kind, table
from pocketqa.statistics import Interval
from pocketqa.types import JSON

ZOO_HEAD = ("model", "layers x width", "parameters", "published", "operations a query", "published", "float32", "float16", "int8", "4 bits")
SPEED_HEAD = ("model", "forward p50 here", "BERT-base, in turns", "times faster here [95 %]", "times faster as published, and where")


def zoo_lines(runs: Runs, link: Link) -> list[str]:
    """Sizes and operations beside the published ones, then times; notes for what differs and for what was not confirmed."""
    parts: list[list[str]] = []
    for name, run in of_kind(runs, "latency").items():
        if "zoo" in run.results:
            parts += [[f"{run.results['workload']}; {rules_text(run.results)}. {link(name, run)}"], *zoo_tables(run.results)]
            parts.append(busy_lines(run))
    return joined(parts)


def zoo_tables(results: JSON) -> list[list[str]]:
    """The two tables of a zoo and its notes, each as lines."""
    ours = [row for row in results["zoo"] if "parameters" in row]
    quoted = [row for row in results["zoo"] if "reported" in row]
    counted = table(ZOO_HEAD, [*map(_zoo_row, ours), *((r["name"], *_quoted_cells(r["reported"])) for r in quoted)])
    timed = [_speed_row(row) for row in ours if "latency" in row]
    timed += [(r["name"], "not run", "", "", _speeds(r["reported"])) for r in quoted if _speeds(r["reported"])]
    notes = [f"- Counted are {results['convention']}; {results['tokens']} tokens.", *_explanations(ours), *_sources(results["zoo"])]
    return [counted, table_if_any(SPEED_HEAD, timed), notes]


def _zoo_row(row: JSON) -> tuple[str, ...]:
    sizes = (megabytes(row["bytes"][key]) for key in ("fp32", "fp16", "int8", "4 bits"))
    parameters, flops = (_beside(row["published"], quantity) for quantity in ("parameters", "flops"))
    name = f"{row['name']} ({row['note']})" if row["note"] else row["name"]
    return (
        name,
        f"{row['layers']} x {row['hidden']}",
        f"{row['parameters'] / 1e6:.2f} M",
        parameters,
        f"{row['flops'] / 1e9:.2f} B",
        flops,
        *sizes,
    )


def _quoted_cells(reported: Sequence[JSON]) -> tuple[str, ...]:
    return "not counted", "", _beside(reported, "parameters"), "", _beside(reported, "flops"), "", "", "", ""


def _beside(published: Sequence[JSON], quantity: str) -> str:
    """ "66 M (+0.5 %), 67.0 M (-1.0 %)": each figure as printed, once, with the difference of ours."""
    cells = []
    for said in published:
        if quantity in said:
            figure = said[quantity]
            cells.append(f"{figure['text']}{_percent(figure)}{_doubt(said)}")
    return ", ".join(dict.fromkeys(cells))


def _percent(figure: JSON) -> str:
    if "difference_percent" not in figure:
        return ""
    rounded = round(figure["difference_percent"], 1)
    return f" ({rounded:+.1f} %)" if rounded else " (0.0 %)"


def _speed_row(row: JSON) -> tuple[str, ...]:
    t, base = row["latency"], row["baseline_latency"]
    name = f"{row['name']} (the network of {row['same_network_as']})" if row["same_network_as"] else row["name"]
    times = (f"{found['p50']:,.2f} {found['unit']}" for found in (t, base))
    return (name, *times, interval(Interval.from_json(row["speed_up"])), _speeds(row["published"]))


def _speeds(published: Sequence[JSON]) -> str:
    found = []
    for said in published:
        if "speed_up" in said:
            derived = f" from {said['time']['text']}" if said["speed_up"]["derived"] else ""
            found.append(f"{said['speed_up']['value']:g}{derived} ({said['timed_on']}){_doubt(said)}")
    return "; ".join(found)


def _doubt(said: JSON) -> str:
    return "" if said["confirmed"] else " (not confirmed)"


def _explanations(rows: Iterable[JSON]) -> list[str]:
    lines: dict[str, list[str]] = {}
    for row in rows:
        for said in row["published"]:
            for quantity, word in (("parameters", "parameters"), ("flops", "operations")):
                explanation = said.get(quantity, {}).get("explanation")
                if explanation:
                    lines.setdefault(f"{word}, published as {said[quantity]['text']}: {explanation}", []).append(row["name"])
    return [f"- {', '.join(dict.fromkeys(names))}, {what}." for what, names in lines.items()]


def _sources(rows: Iterable[JSON]) -> list[str]:
    said = [one for row in rows for one in (*row.get("published", ()), *row.get("reported", ()))]
    places = dict.fromkeys(f"{one['source']}, {one['place']}" for one in said)
    lines = [f"- Published figures: {'; '.join(places)}."]
    if not all(one["confirmed"] for one in said):
        lines.append("- Not confirmed: the figure is quoted from memory, since its source could not be read when the table was made.")
    return lines
