"""What this project measured beside a published claim: queries of the run files, by name.

A query answers with one line a figure, each with the run file it stands in; with "not measured" where no run file has it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from pocketqa.reporting import tables
from pocketqa.reporting.tables import Runs, interval, of_kind, percent, signed
from pocketqa.reporting.training_tables import NOT_BEATEN, Group, TaskGroups, mean_beats_control, median_run, not_beaten, six_of, task_groups
from pocketqa.runs import RunFile, compare, compare_tasks
from pocketqa.statistics import Interval
from pocketqa.task_scores import TaskComparison, compare_means, mean_of_tasks
from pocketqa.types import JSON

NOT_MEASURED = "not measured"
UNITS = {
    "parameters": (1e6, "M parameters"),
    "flops": (1e9, "B operations"),
    "bytes fp32": (1e6, "MB in float32"),
    "bytes fp16": (1e6, "MB in float16"),
}
Link = Callable[[str, RunFile], str]
Lines = Iterator[tuple[str, str]]  # what was measured, and the name of its run file ("" for several)


@dataclass(frozen=True, slots=True)
class Query:
    """A query by its name, with what it needs to know."""

    name: str
    given: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of query: what it needs to know, and how it is answered."""

    needs: tuple[str, ...]
    answer: Callable[..., Lines]


def answer(query: Query, runs: Runs, link: Link) -> list[str]:
    """The figures of ours, each with its run file."""
    kind = QUERIES[query.name]
    lines = kind.answer(runs, *(query.given[key] for key in kind.needs))
    return [f"{words} ({link(name, runs[name])})" if name else words for words, name in lines] or [NOT_MEASURED]


def _squad_scores(runs: Runs, role: str) -> Lines:
    """EM and F1 on SQuAD dev of the model of a role measured last, as PyTorch computes it in float32 where that was measured."""
    found = [(name, run) for name, run in _on_squad(runs).items() if run.subjects[0].role == role]
    for name, run in found[:1]:
        r, s = run.results, run.subjects[0]
        yield f"{role}: EM {r['exact_match']:.2f}, F1 {r['f1']:.2f}, {s.engine} {s.precision}, {r['count']:,} questions", name


def _squad_pair(runs: Runs, first: str, second: str) -> Lines:
    """EM and F1 of one less those of the other, and the share of F1 that is kept, where the second is shown to beat the control."""
    found = _on_squad(runs)
    names = {id(run): name for name, run in found.items()}
    by_role = {role: [run for run in found.values() if run.subjects[0].role == role] for role in (first, second, "control")}
    controls = tables.paired_runs(by_role[second], by_role["control"])
    for ours, theirs in tables.paired_runs(by_role[first], by_role[second]):
        outcome = compare(ours, theirs)
        kept = f"; F1 kept: not quoted, the {second} was not shown to beat the control"
        if outcome.retention and tables.beats_control(tables.of_same_weights(controls, theirs)):
            kept = f"; F1 kept: {percent(outcome.retention)}"
        yield f"{first} less {second}: {tables.differences(outcome)}, {tables.how(ours)}{kept}", names[id(ours)]


def _on_squad(runs: Runs) -> Runs:
    return tables.current(tables.evaluations(runs, "squad-dev"))


def _task_retention(runs: Runs, task: str, first: str, second: str) -> Lines:
    groups = task_groups(runs)
    for outcome, name, data in _task_pairs(groups, task, first, second):
        if reason := not_beaten(groups[task, data, second], groups.get((task, data, "control"))):
            yield f"{first}: {reason}", name
        elif outcome.retention:
            yield f"{first}: {percent(outcome.retention)} of the {second}'s score, median seeds, {outcome.count:,} examples", name


def _task_difference(runs: Runs, task: str, first: str, second: str) -> Lines:
    for outcome, name, _ in _task_pairs(task_groups(runs), task, first, second):
        yield f"{first} less {second}: {signed(outcome.difference)} points, median seeds, {outcome.count:,} examples", name


def _task_pairs(groups: TaskGroups, task: str, first: str, second: str) -> Iterator[tuple[TaskComparison, str, tuple[str, ...]]]:
    """Comparisons of the median runs of two roles on a task, each with the first one's run file and the hashes of the data."""
    for (found, data, role), group in groups.items():
        if found == task and role == first and (others := groups.get((task, data, second))):
            ours, theirs = median_run(group), median_run(others)
            yield compare_tasks(ours.results, theirs.results, (ours.name, theirs.name)), _name(group, ours), data


def _mean_retention(runs: Runs, first: str, second: str) -> Lines:
    whole = six_of(task_groups(runs))
    if first in whole and second in whole:
        outcome = compare_means(whole[first], whole[second])
        if not mean_beats_control(whole, second):
            yield f"{first}: {NOT_BEATEN}, by its means of six tasks and of five (see Classification)", ""
        elif outcome.retention:
            yield f"{first}: {percent(outcome.retention)} of the {second}'s mean of six tasks, median seeds (see Classification)", ""


def _mean_score(runs: Runs, role: str) -> Lines:
    whole = six_of(task_groups(runs))
    if role in whole:
        yield f"{role}: {interval(mean_of_tasks(whole[role]))}, mean of six tasks, median seeds (see Classification)", ""


def _pass(runs: Runs, first: str, second: str) -> Lines:
    """How many times longer a pass over STS-B at batch 1 takes with the first, in each engine: on a quiet machine, over the fewest threads, last."""
    found: dict[str, tuple[str, str]] = {}
    passes = {name: run for name, run in of_kind(runs, "latency").items() if "whole_pass" in run.results and run.results.get("threads")}
    for name, run in sorted(passes.items(), key=lambda item: (not item[1].results.get("busy"), -item[1].results["threads"], item[1].created)):
        weights = {f"{s.name}, {s.engine} {s.precision}": f"{s.name} `{s.sha256[:12]}`" for s in run.subjects}
        for label, ratio in run.results["whole_pass"]["ratios"].items():
            one, other = label.split(" / ")
            engine, threads = one.removeprefix(f"{first}, "), run.results["threads"]
            if (one, other) == (f"{first}, {engine}", f"{second}, {engine}"):
                times = interval(Interval.from_json(ratio["total"]))
                both = f"{weights.get(one, first)} over {weights.get(other, second)}"
                said = f"{both}, one pass, {engine}, {threads} thread{'' if threads == 1 else 's'}: {times} times{_caveats(run)}"
                found[engine] = (said, name)
    yield from found.values()


def _counted(runs: Runs, model: str, quantity: str) -> Lines:
    for name, rows in _last_zoo(runs):
        if model in rows:
            per, unit = UNITS[quantity]
            yield f"{model}: {_quantity(rows[model], quantity) / per:.2f} {unit}, counted from its configuration", name


def _counted_less(runs: Runs, first: str, second: str, quantity: str) -> Lines:
    for name, rows in _last_zoo(runs):
        if first in rows and second in rows:
            less = 100 * (1 - _quantity(rows[second], quantity) / _quantity(rows[first], quantity))
            yield f"{second}: {less:.1f} % fewer than {first}, {UNITS[quantity][1].split()[-1]} counted from the configurations", name


def _counted_speed(runs: Runs, model: str) -> Lines:
    for name, rows in _last_zoo(runs):
        if "speed_up" in rows.get(model, {}):
            times = interval(Interval.from_json(rows[model]["speed_up"]))
            yield f"{model} in the paper's size: {times} times faster than BERT-base here{_caveats(runs[name])}", name


def _quantity(row: JSON, quantity: str) -> float:
    key, _, precision = quantity.partition(" ")
    return float(row[key][precision] if precision else row[key])


def _last_zoo(runs: Runs) -> Iterator[tuple[str, dict[str, JSON]]]:
    """The zoo counted last: its run file and its own rows by name."""
    found = [(name, run) for name, run in of_kind(runs, "latency").items() if "zoo" in run.results]
    for name, run in found[-1:]:
        yield name, {str(row["name"]): row for row in run.results["zoo"] if "parameters" in row}


def _paper_race(runs: Runs, first: str, second: str) -> Lines:
    """By how much less time a forward pass takes with the second, on the same inputs, in the race of the paper's sizes run last."""
    found = [(name, run) for name, run in of_kind(runs, "latency").items() if "audit" in run.results]
    for name, run in found[-1:]:
        for label, ratio in run.results["forward_ratios"].items():
            one, other = label.split(" / ")
            if one.startswith(f"{first}, ") and other.startswith(f"{second}, "):
                less = 100 * (1 - 1 / ratio["value"])
                yield (
                    f"{second}: {less:.1f} % less time than {first} on the same inputs, {other.removeprefix(f'{second}, ')}, on a CPU{_caveats(run)}",
                    name,
                )


def _caveats(run: RunFile) -> str:
    valid = run.results.get("rules", {}).get("valid", True)
    return (", on a busy machine" if run.results.get("busy") else "") + ("" if valid else ", not valid by its rules")


def _ablation(runs: Runs, row: str) -> Lines:
    """The difference of F1 of a row of the ablations, in points: another measure than GLUE's."""
    for name, run in of_kind(runs, "ablation").items():
        for found in run.results["rows"]:
            if found["name"] == row and found["difference"]:
                yield f"{found['words']}: {signed(Interval.from_json(found['difference']))} points of F1 on questions, not of GLUE", name


def _ablation_means(runs: Runs, row: str, against: str) -> Lines:
    """The means over the seeds of a row less those of another of the same ablation."""
    for name, run in of_kind(runs, "ablation").items():
        rows = {found["name"]: found for found in run.results["rows"]}
        if row in rows and against in rows:
            exact, f1 = (rows[row][key] - rows[against][key] for key in ("exact_match", "f1"))
            seeds = rows[row]["seeds"]
            of = f"means of {len(seeds)} seeds" if len(seeds) > 1 else "one seed"
            yield f"{rows[row]['words']} less {rows[against]['words']}: EM {exact:+.2f}, F1 {f1:+.2f}, {run.data[0].name}, {of}", name


def _name(group: Group, run: RunFile) -> str:
    return next(name for name, other in group.values() if other is run)


QUERIES = {
    "squad scores": Kind(("role",), _squad_scores),
    "squad": Kind(("first", "second"), _squad_pair),
    "task retention": Kind(("task", "first", "second"), _task_retention),
    "task difference": Kind(("task", "first", "second"), _task_difference),
    "mean retention": Kind(("first", "second"), _mean_retention),
    "mean score": Kind(("role",), _mean_score),
    "pass": Kind(("first", "second"), _pass),
    "counted": Kind(("model", "quantity"), _counted),
    "counted less": Kind(("first", "second", "quantity"), _counted_less),
    "counted speed": Kind(("model",), _counted_speed),
    "paper race": Kind(("first", "second"), _paper_race),
    "ablation": Kind(("row",), _ablation),
    "ablation means": Kind(("row", "against"), _ablation_means),
}
