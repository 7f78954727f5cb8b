"""The tables of training: runs by stage, tasks of classification, ablations, and the speed of training.

Legend: a "row" is one cell text per column; every row or table ends with where its numbers come from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from pocketqa.reporting.mobile_tables import busy_lines, joined, table_if_any
from pocketqa.reporting.tables import ROLES, Runs, duration, filled_table, interval, model_cell, of_kind, percent, signed, table, training_table
from pocketqa.runs import RunFile, TaskComparison, compare_tasks
from pocketqa.statistics import Interval
from pocketqa.task_scores import SIX, commonest_class, compare_means, mean_of_tasks
from pocketqa.types import JSON

Link = Callable[[str, RunFile], str]
Group = dict[int | None, tuple[str, RunFile]]  # seed -> name and run
TaskGroups = dict[tuple[str, tuple[str, ...], str], Group]  # task, hashes of its data, role

TEXT_HEAD = ("run", "text", "rows", "steps", "tokens", "time", "tokens a second", "losses at the end", "loss on text kept apart", "measured")
TASK_HEAD = (
    "task",
    "examples",
    "model",
    "score [95 %]",
    "metrics",
    "seeds",
    "against the control [95 %]",
    "retention, percent of the teacher [95 %]",
)
TASK_RUN_HEAD = ("task", "model", "seed", "score [95 %]", "measured")
ABLATION_HEAD = ("row", "EM", "F1", "against", "difference of F1 [95 %]", "by seed", "the paper's difference, GLUE")
RETENTION_HEAD = "percent of the teacher's F1 [95 %]"
SPEED_HEAD = ("step", "tokens a second", "times the row before [95 %]")
TEXT_STAGES = {"pretrain": "Masked-language modelling:", "distill": "Distillation on text:"}
NOT_BEATEN = "not quoted: the teacher is not shown to beat the control"
NOT_BEATEN_BLIND = "not quoted: the teacher is not shown to beat the commonest class"
TASK_NOTES = (
    "Scores are in percent: Matthews correlation for CoLA, the mean of accuracy and F1 for MRPC and QQP, that of Pearson and Spearman correlation",
    "for STS-B, accuracy for the others. Of several seeds the run with the median score is shown (of an even number the lower of the middle two);",
    "intervals resample examples and hold for that run, so they do not cover the spread between seeds. A percentage of the teacher's score is the",
    "retention, quoted where the teacher is shown to beat the control and what always naming the commonest class would score; of a mean, where it",
    "beats the control by both means. A mean of six tasks is not the GLUE score, which is of nine tasks and of hidden labels; it stands without",
    "WNLI too, which the BERT paper leaves out: its few sentences come in both sets with opposite answers, so that chance decides by how much a",
    "model stays below the commonest class.",
)


def training_lines(runs: Runs, link: Link) -> list[str]:
    """Trainings by stage: on text first, then fine-tuning."""
    parts: list[list[str]] = []
    for stage, title in TEXT_STAGES.items():
        rows = [_text_row(name, run, link) for name, run in _of_stage(runs, stage).items()]
        parts += [[title], table(TEXT_HEAD, rows)] if rows else []
    finetuned = training_table(_of_stage(runs, "finetune"), link)
    if parts and finetuned:
        parts.append(["Fine-tuning:"])
    return joined([*parts, finetuned])


def _of_stage(runs: Runs, stage: str) -> dict[str, RunFile]:
    return {name: run for name, run in of_kind(runs, "training").items() if run.results.get("stage", "finetune") == stage}


def _text_row(name: str, run: RunFile, link: Link) -> tuple[str, ...]:
    r = run.results
    losses = ", ".join(f"{part.removeprefix('loss_')} {value:.4f}" for part, value in r.get("losses", {}).items() if part != "loss")
    if not losses and r.get("loss") is not None:
        losses = f"{r['loss']:.4f}"
    counts = (f"{r[key]:,}" for key in ("questions", "steps", "tokens"))
    speed = f"{r['tokens'] / r['seconds']:,.0f}" if r["seconds"] else ""
    return (run.name, ", ".join(item.name for item in run.data), *counts, duration(r["seconds"]), speed, losses, _kept_apart(r), link(name, run))


def _kept_apart(results: JSON) -> str:
    found = results.get("development") or {}
    parts = [f"{found['loss']:.4f}"] if "loss" in found else []
    parts += [f"perplexity {found['perplexity']:.2f}"] if "perplexity" in found else []
    return ", ".join(parts)


def task_lines(runs: Runs, link: Link) -> list[str]:
    """Each task with every model's score beside the control's and the teacher's, the mean of six, and the runs they come from."""
    groups = task_groups(runs)
    if not groups:
        return []
    tasks = list(dict.fromkeys(task for task, _, _ in groups))
    rows = [row for task in tasks for row in _task_rows(groups, task)]
    found = [(name, run) for group in groups.values() for name, run in group.values()]
    of_runs = [(run.results["title"], model_cell(run.subjects[0]), _seed(run), _score(run.results), link(name, run)) for name, run in found]
    return joined([list(TASK_NOTES), table(TASK_HEAD, [*rows, *_mean_rows(groups)]), _cut_lines(groups), table(TASK_RUN_HEAD, of_runs)])


def _cut_lines(groups: TaskGroups) -> list[str]:
    """Whose examples are longer than what was read of them."""
    results = [median_run(group).results for group in groups.values()]
    told = (
        f"- {r['title']}: {r['cut']:,} of {r['count']:,} examples are longer than {r['max_tokens']} tokens and were cut."
        for r in results
        if r.get("cut")
    )
    return list(dict.fromkeys(told))


def task_groups(runs: Runs) -> TaskGroups:
    """The last run of each seed, by task, data and role; tasks in the order of SIX, then the others; teacher and student before the control.

    Of a role that was trained in several ways (from other weights, with another teacher, recipe or data), the runs of the way that was measured last:
    the seeds of one are not those of another.  Samples give way to whole data.
    """
    found: TaskGroups = {}
    ways: dict[object, JSON] = {}
    ordered = sorted(of_kind(runs, "classification").items(), key=lambda item: (item[1].created, item[0]), reverse=True)
    whole: dict[object, int] = {}
    for _, run in ordered:
        whole[_examples(run)] = max(run.results["count"], whole.get(_examples(run), 0))
    for name, run in ordered:
        key = (*_examples(run), run.subjects[0].role)
        if run.results["count"] == whole[_examples(run)] and _are_alike(ways.setdefault(key, run.results), run.results):
            found.setdefault(key, {}).setdefault(run.results["seed"], (name, run))

    def order(key: tuple[str, tuple[str, ...], str]) -> tuple[object, ...]:
        task, data, role = key
        return SIX.index(task) if task in SIX else len(SIX), task, data, ROLES.index(role) if role in ROLES else 1, role

    by_seed = {key: dict(sorted(group.items(), key=lambda item: (item[0] is None, item[0] or 0))) for key, group in found.items()}
    return {key: by_seed[key] for key in sorted(by_seed, key=order)}


def _examples(run: RunFile) -> tuple[str, tuple[str, ...]]:
    """The task and its data."""
    return str(run.results["task"]), tuple(item.sha256 for item in run.data)


def _are_alike(first: JSON, second: JSON) -> bool:
    """Whether two models of a task were trained in one way, but for the seed; older run files hold no more than where a training started."""
    keys = ("start", "teacher", "settings") if first.get("settings") and second.get("settings") else ("start",)
    return all(first.get(key) == second.get(key) for key in keys)


def _task_rows(groups: TaskGroups, task: str) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for data in dict.fromkeys(data for name, data, _ in groups if name == task):
        of_data = {role: group for (name, other, role), group in groups.items() if (name, other) == (task, data)}
        teacher, control = of_data.get("teacher"), of_data.get("control")
        runs = {role: median_run(group) for role, group in of_data.items()}
        for role, run in runs.items():
            against = _difference(run, control) if role != "control" else ""
            kept = _kept(run, teacher, control) if role != "teacher" else ""
            rows.append(_task_row(run.results["title"], role, run.results, _seeds(of_data[role]), against, kept))
        run = next(iter(runs.values()))
        if blind := commonest_class(run.results):
            rows.append(_task_row(run.results["title"], "always the commonest class", blind, "", "", ""))
    return rows


def _task_row(title: str, role: str, results: JSON, *compared: str) -> tuple[str, ...]:
    metrics = ", ".join(f"{metric} {value:.2f}" for metric, value in results["metrics"].items())
    return (title, f"{results['count']:,}", role, _score(results), metrics, *compared)


def six_of(groups: TaskGroups) -> dict[str, list[JSON]]:
    """The results of the median seeds of all six tasks, in their order, of each role that has them: all from the same weights, and all with
    a teacher or all without.  Of a task with several data sets, those that were measured last.
    """
    last: dict[str, tuple[str, tuple[str, ...]]] = {}  # when each task was measured last, and on which data
    for (task, data, _), group in groups.items():
        last[task] = max(last.get(task, ("", ())), *((run.created, data) for _, run in group.values()))
    by_role: dict[str, dict[str, JSON]] = {}
    for (task, data, role), group in groups.items():
        if task in SIX and data == last[task][1]:
            by_role.setdefault(role, {})[task] = median_run(group).results
    return {role: [found[task] for task in SIX] for role, found in by_role.items() if len(found) == len(SIX) and _are_of_one_model(found.values())}


def _are_of_one_model(results: Iterable[JSON]) -> bool:
    return len({(one.get("start"), one.get("teacher") is None) for one in results}) == 1


def _mean_rows(groups: TaskGroups) -> list[tuple[str, ...]]:
    """Two rows a role that has all six tasks: their mean, and that of five.  Never called the GLUE score, which is of nine tasks."""
    rows: list[tuple[str, ...]] = []
    six = six_of(groups)
    unbeaten = None if mean_beats_control(six) else NOT_BEATEN
    for title, whole in _means(six).items():
        for role, results in whole.items():
            against = kept = ""
            if role != "control" and "control" in whole:
                against = signed(compare_means(results, whole["control"]).difference)
            if role != "teacher" and "teacher" in whole:
                kept = _retention(compare_means(results, whole["teacher"]), unbeaten)
            rows.append((title, "", role, interval(mean_of_tasks(results)), "", "", against, kept))
    return rows


def _means(six: Mapping[str, Sequence[JSON]]) -> dict[str, dict[str, Sequence[JSON]]]:
    """What is averaged, by its name: all six, and without the last, WNLI."""
    return {"mean of six": dict(six), "mean of five, without WNLI": {role: results[:-1] for role, results in six.items()}}


def mean_beats_control(six: Mapping[str, Sequence[JSON]], teacher: str = "teacher") -> bool:
    """Whether the teacher's means of six tasks and of five, without WNLI, are both shown to be better than the control's."""
    return all(_beats_control(whole, teacher) for whole in _means(six).values())


def _beats_control(whole: Mapping[str, Sequence[JSON]], teacher: str) -> bool:
    return {teacher, "control"} <= whole.keys() and compare_means(whole[teacher], whole["control"]).difference.low > 0


def median_run(group: Group) -> RunFile:
    """The run with the median score; of an even number of seeds the lower of the middle two."""
    ordered = sorted((run for _, run in group.values()), key=lambda run: float(run.results["score"]))
    return ordered[(len(ordered) - 1) // 2]


def _seeds(group: Group) -> str:
    scores = [float(run.results["score"]) for _, run in group.values()]
    return "1" if len(scores) == 1 else f"{len(scores)}: {min(scores):.2f} to {max(scores):.2f}"


def _seed(run: RunFile) -> str:
    return "" if run.results["seed"] is None else str(run.results["seed"])


def _score(results: JSON) -> str:
    return interval(Interval.from_json(results["intervals"]["score"]))


def _difference(run: RunFile, control: Group | None) -> str:
    return signed(_against(run, median_run(control)).difference) if control else "not measured"


def _kept(run: RunFile, teacher: Group | None, control: Group | None) -> str:
    return _retention(_against(run, median_run(teacher)), not_beaten(teacher, control)) if teacher else "not measured"


def not_beaten(teacher: Group, control: Group | None) -> str | None:
    """Why there is nothing of its own that could be retained: what the teacher's median run is not shown to be better than; else None."""
    run = median_run(teacher)
    if control is None or _against(run, median_run(control)).difference.low <= 0:
        return NOT_BEATEN
    blind = commonest_class(run.results)
    return NOT_BEATEN_BLIND if blind and compare_tasks(run.results, blind).difference.low <= 0 else None


def _against(first: RunFile, second: RunFile) -> TaskComparison:
    return compare_tasks(first.results, second.results, (first.name, second.name))


def _retention(outcome: TaskComparison, unbeaten: str | None) -> str:
    """unbeaten: why it is not quoted, if so."""
    if unbeaten:
        return unbeaten
    if outcome.retention is None:
        return "no interval: in some resample the teacher's score is not above 0"
    return _without_unit(outcome.retention)


def ablation_lines(runs: Runs, link: Link) -> list[str]:
    """One table an ablation: ours beside the paper's differences, which are in another measure."""
    parts: list[list[str]] = []
    for name, run in of_kind(runs, "ablation").items():
        r = run.results
        parts.append([f"{run.name}: {r['measure']}. {link(name, run)}"])
        parts.append(filled_table((*ABLATION_HEAD, RETENTION_HEAD), [_ablation_row(row) for row in r["rows"]]))
        parts.append([f"- {note}" for note in r.get("notes", ())])
    return joined(parts)


def _ablation_row(row: JSON) -> tuple[str, ...]:
    by_seed = [f"{one['difference']:+.2f}" for one in row["seeds"] if one["difference"] is not None] or [f"{one['f1']:.2f}" for one in row["seeds"]]
    by_seed = by_seed if len(by_seed) > 1 else []  # one seed is the row itself
    difference = "reference" if row["difference"] is None else signed(Interval.from_json(row["difference"]))
    paper = "" if row["paper"] is None else f"{row['paper']:+.2f}"
    cells = (row["words"], f"{row['exact_match']:.2f}", f"{row['f1']:.2f}", row["against"] or "", difference)
    retention = _without_unit(Interval.from_json(row["retention"])) if row.get("retention") else ""
    return (*cells, ", ".join(by_seed), paper, retention)


def _without_unit(kept: Interval) -> str:
    """A percentage in a column that says so."""
    return percent(kept).replace(" %", "")


def speed_lines(runs: Runs, link: Link) -> list[str]:
    """One waterfall a measurement of the speed of training."""
    parts: list[list[str]] = []
    for name, run in of_kind(runs, "training-speed").items():
        r = run.results
        rates = "; ".join(f"{who}: {interval(Interval.from_json(rate))} tokens a second" for who, rate in r["tokens_per_second"].items())
        models, times = ", ".join(map(model_cell, run.subjects)), interval(Interval.from_json(r["ratio"]))
        parts.append([f"{models}: {r['workload']}. {rates}; {times} times. {link(name, run)}"])
        parts.append(table_if_any(SPEED_HEAD, [_speed_row(row) for row in r["waterfall"]]))
        parts.append([*_remarks(r), *busy_lines(run)])
    return joined(parts)


def _speed_row(row: JSON) -> tuple[str, ...]:
    ratio = row.get("ratio")
    return str(row["step"]), f"{row['tokens_per_second']:,.0f}", interval(Interval.from_json(ratio)) if ratio else ""


def _remarks(results: JSON) -> Sequence[str]:
    said = []
    if rate := results.get("matrix_rate"):
        share = 100 * rate["reached_tflops"] / rate["measured_tflops"]
        said.append(
            f"- Reached: {rate['reached_tflops']:.3f} TFLOP/s, {share:.0f} % of the {rate['measured_tflops']:.3f} TFLOP/s that products of large "
            "bf16 matrices have on this machine."
        )
    if results.get("loss_difference") is not None:
        absolute = ", ".join(f"{value:.1e} in {name}" for name, value in results.get("loss_difference_absolute", {}).items())
        share = f"{results['loss_difference']:.1e} of the loss{f' ({absolute})' if absolute else ''}"
        said.append(f"- Losses on the same batches without dropout differ by at most {share}.")
    return said
