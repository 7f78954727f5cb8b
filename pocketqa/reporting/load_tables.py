"""The tables of load tests: times of both loops, where the time went, and the highest rates within an objective."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from pocketqa.reporting.mobile_tables import busy_lines, busy_sentences, joined, table_if_any
from pocketqa.reporting.tables import Runs, interval, model_cell, of_kind, timing_table
from pocketqa.runs import RunFile
from pocketqa.statistics import Interval
from pocketqa.types import JSON

Link = Callable[[str, RunFile], str]

SEARCH_HEAD = (
    "contestant", "requests", "p50 [95 %]", "p90 [95 %]", "p99 [95 %]", "EM", "F1", "failures", "p50: times the student's [95 %]",
    "p99: times the student's [95 %]", "highest rate, a second [95 %]", "the student's rate: times as high [95 %]",
)  # fmt: skip
PARTS = ("sent late", "tokenise", "queue", "forward", "decode", "other in the server", "network and HTTP", "whole")


def load_lines(runs: Runs, link: Link) -> list[str]:
    """Times of single runs and where they went, one table each; then each run that searched for the highest rates."""
    found = of_kind(runs, "load")
    single = {name: run for name, run in found.items() if "search" not in run.results}
    doubts = [f"- {run.name}: {doubt}" for run in single.values() for doubt in (*_void(run), *busy_sentences(run))]
    nothing = [
        f"- {run.results['workload']}: no request had an answer, {run.results.get('failures', 'an unknown number')} failed {link(name, run)}"
        for name, run in single.items()
        if not run.results.get("timings")
    ]
    parts = [timing_table(single, "load", link), _where_table(single, link), doubts, nothing]
    for name, run in found.items():
        if "search" in run.results:
            parts += _search_parts(name, run, link)
    return joined(parts)


def _void(run: RunFile) -> list[str]:
    return [f"void: {reason}" for reason in run.results.get("void", ())]


def _where_table(runs: Runs, link: Link) -> list[str]:
    """Mean milliseconds of the parts of an answer's time; they add up to the whole."""
    rows: list[tuple[str, ...]] = []
    for name, run in runs.items():
        for contestant, parts in sorted(run.results.get("where", {}).items()):
            what = f"{run.results['workload']} {link(name, run)}"
            rows.append((what, contestant, *(f"{parts[part]:,.2f}" for part in PARTS)))
    return table_if_any(("mean milliseconds of an answer's time", "contestant", *PARTS), rows)


def _search_parts(name: str, run: RunFile, link: Link) -> Iterable[list[str]]:
    r, search = run.results, run.results["search"]
    where = (
        f" Servers on {r['cores']['servers']} and client on {r['cores']['client']} cores of their own." if r.get("cores", {}).get("client") else ""
    )
    models = ", ".join(map(model_cell, run.subjects))
    at = f" Times are at {r['rate']:g} requests a second to each." if r.get("timings") and "rate" in r else ""
    repeated = f" Each search {search['rounds']} times." if search.get("rounds", 1) > 1 else " One search each, so there is no interval."
    counts = [point["count"] for point in search.get("points", ()) if point["count"]]
    many = " to ".join(f"{count:,}" for count in sorted({min(counts), max(counts)})) if counts else ""
    rough = "; of 100 or fewer the p99 is the slowest, so these rates are rough" if counts and min(counts) <= 100 else ""
    steps = f" Steps of a search had {many} requests{rough}." if counts else ""
    yield [
        f"{models}: {r['workload']}; the highest rate is that of the requests within {search['objective']}.{at}{repeated}{steps}{where} "
        f"{link(name, run)}"
    ]
    yield [f"- {who}: {r['contestants'][who]}" for who in order_of(search) if who in r.get("contestants", {})]
    yield table_if_any(SEARCH_HEAD, [_search_row(who, r) for who in order_of(search)])
    yield busy_lines(run)


def order_of(search: JSON) -> Sequence[str]:
    """Contestants, teacher and student first; a run file sorts its keys."""
    return sorted(search["rates"], key=lambda name: (name not in ("teacher", "student"), name != "teacher", name))


def _search_row(who: str, r: JSON) -> tuple[str, ...]:
    search = r["search"]
    several = search.get("rounds", 1) > 1
    ends, scores = r.get("intervals", {}).get(who, {}), r.get("scores", {}).get(who)
    times = (f"{interval(Interval.from_json(ends[q]))} ms" if q in ends else "" for q in ("p50", "p90", "p99"))
    said = (f"{scores['exact_match']:.2f}", f"{scores['f1']:.2f}") if scores else ("", "")
    failed = f"{r['failed'][who]:,}" if "failed" in r else ""
    slower = (_cell(r.get("ratios", {}).get(f"{who} / student"), True), _cell(r.get("ratios_p99", {}).get(who), True))
    rate = search["rates"][who]
    highest = _cell(rate, several) if rate else "none: it does not hold at the lowest rate"
    count = f"{r['timings'][who]['count']:,}" if who in r.get("timings", {}) else ""
    return (who, count, *times, *said, failed, *slower, highest, _cell(search.get("ratios", {}).get(who), several))


def _cell(found: JSON | None, several: bool) -> str:
    """A number with its interval, where it was measured more than once."""
    if not found:
        return ""
    return interval(Interval.from_json(found)) if several else f"{found['value']:.2f}"
