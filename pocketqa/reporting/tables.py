"""The tables and sentences of RESULTS.md and of the README, made from run files alone.

Legend: a "row" is one cell text per column; every row ends with the cell that says where its numbers come from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from pocketqa.results import Comparison
from pocketqa.runs import RunFile, Subject, compare
from pocketqa.statistics import Interval
from pocketqa.types import JSON

ROLES = ("teacher", "student", "control")
REFERENCE = ("pytorch", "fp32")  # the form whose weights and arithmetic every other form is compared with
Runs = Mapping[str, RunFile]

EVALUATION_HEAD = ("model", "engine, precision", "data", "questions", "EM [95 %]", "F1 [95 %]", "F1 against PyTorch fp32", "measured")
TIME_HEAD = "ms a question, p50 / p90"
TRAINING_HEAD = ("run", "data", "questions", "steps", "tokens", "time", "last loss", "best EM / F1 on the development split", "measured")
QUESTIONS = "questions"
ONE_TRAINING = "Every model is one training, whose luck they do not cover."
TIMING_HEAD = ("what", "model", "count", "mean", "p50", "p90", "p99", "unit", "measured")
EXPORT_HEAD = ("model", "target", "precision", "package", "weights", "specification", "inputs", "outputs", "measured")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table as lines; bars in cells are escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines]


def filled_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table without the columns that are empty in every row; no lines for no rows."""
    found = list(rows)
    kept = [at for at in range(len(head)) if any(row[at] for row in found)]
    return table([head[at] for at in kept], [[row[at] for at in kept] for row in found]) if found else []


def evaluations(runs: Runs, split: str, contexts: str = "paragraphs") -> dict[str, RunFile]:
    """Evaluations of one model on a split, by role, model, newest weights first, engine and date.

    contexts: what the questions were asked of, "paragraphs" or whole "articles".
    """
    of_split = {name: run for name, run in of_kind(runs, "evaluation").items() if split in {d.split for d in run.data}}
    found = {name: run for name, run in of_split.items() if run.results.get("contexts", "paragraphs") == contexts}
    models = model_order(found)

    def order(item: tuple[str, RunFile]) -> tuple[object, ...]:
        subject = item[1].subjects[0]
        return (*models(subject), not _is_reference(subject), subject.engine, subject.precision, item[1].created, item[0])

    return dict(sorted(found.items(), key=order))


def model_order(found: Runs) -> Callable[[Subject], tuple[object, ...]]:
    """The place of a model among those of some runs: by role, name and the day its weights were last measured, newest first."""
    newest: dict[str, str] = {}
    for run in found.values():
        newest[run.subjects[0].sha256] = max(run.created, newest.get(run.subjects[0].sha256, ""))
    return lambda subject: (*order_of(subject), tuple(-ord(letter) for letter in newest[subject.sha256]), subject.sha256)


def current(found: Runs) -> dict[str, RunFile]:
    """Of evaluations of whole files: for each role and name the weights measured last, and of those the last run in each engine and precision."""
    largest: dict[tuple[str, ...], int] = {}
    for run in found.values():
        largest[_hashes(run)] = max(run.results["count"], largest.get(_hashes(run), 0))
    whole = {name: run for name, run in found.items() if run.results["count"] == largest[_hashes(run)]}
    weights: dict[tuple[str, str], tuple[str, str]] = {}
    latest: dict[tuple[object, ...], tuple[str, str]] = {}
    for name, run in whole.items():
        s = run.subjects[0]
        weights[s.role, s.name] = max((run.created, s.sha256), weights.get((s.role, s.name), ("", "")))
        form = (s.role, s.name, s.sha256, s.engine, s.precision, _hashes(run))
        latest[form] = max((run.created, name), latest.get(form, ("", "")))
    hashes = {sha256 for _, sha256 in weights.values()}
    kept = {name for _, name in latest.values() if whole[name].subjects[0].sha256 in hashes}
    return {name: run for name, run in whole.items() if name in kept}


def evaluation_table(found: Runs, link: Callable[[str, RunFile], str], times: Mapping[tuple[str, str, str], str] | None = None) -> list[str]:
    """One row an evaluation, with the paired difference to the PyTorch fp32 form of the same weights.

    times: what one question takes, by weights, engine and precision, for a column of its own.
    """
    rows = []
    for name, run in found.items():
        subject, results = run.subjects[0], run.results
        reference = _reference(found, run)
        difference = signed(compare(run, reference).f1) if reference else "not measured"
        rows.append(
            (
                model_cell(subject),
                form_cell(subject),
                _data(run),
                questions_cell(results),
                interval(Interval.from_json(results["intervals"]["exact_match"])),
                interval(Interval.from_json(results["intervals"]["f1"])),
                "reference" if reference is run else difference,
                *([] if times is None else [times.get((subject.sha256, subject.engine, subject.precision), "not measured")]),
                link(name, run),
            )
        )
    return table(EVALUATION_HEAD if times is None else (*EVALUATION_HEAD[:-1], TIME_HEAD, EVALUATION_HEAD[-1]), rows)


def questions_cell(results: JSON) -> str:
    """ "10,570 in 48 groups": how many questions, and of how many articles or passages where intervals resample those."""
    unit = str(results["intervals"].get("resampled", QUESTIONS))
    return f"{results['count']:,}" if unit == QUESTIONS else f"{results['count']:,} in {unit.removesuffix(f' of {QUESTIONS}')}"


def resampling(found: Runs) -> list[str]:
    """What the intervals resample: questions, or whole groups of them (articles or passages), and what they leave out."""
    if all(run.results["intervals"].get("resampled", QUESTIONS) == QUESTIONS for run in found.values()):
        return [f"Intervals resample questions. {ONE_TRAINING}"]
    return [
        "Intervals resample the groups that a row counts, articles or passages; they are too narrow where those are fewer than 20 or a few hold most "
        f"of the questions. {ONE_TRAINING}"
    ]


def statements(found: Runs) -> list[str]:
    """What the current evaluations say about teacher against control, student against control and student against teacher."""
    runs = list(current(found).values())
    by_role = {role: [run for run in runs if run.subjects[0].role == role] for role in ROLES}
    controls = paired_runs(by_role["teacher"], by_role["control"])
    lines = [_against_control(run, control) for run, control in (*controls, *paired_runs(by_role["student"], by_role["control"]))]
    for student, teacher in paired_runs(by_role["student"], by_role["teacher"]):
        lines.append(_retention(student, teacher, of_same_weights(controls, teacher)))
    if by_role["teacher"] and not controls:
        models = ", ".join(dict.fromkeys(model_cell(run.subjects[0]) for run in by_role["teacher"]))
        lines.append(f"No control of its pair was measured on the same questions in the same engine: whether the {models} beats one is not known.")
    return [f"- {line}" for line in lines]


def _against_control(run: RunFile, control: RunFile) -> str:
    outcome, model, other = compare(run, control), model_cell(run.subjects[0]), model_cell(control.subjects[0])
    if outcome.f1.low > 0:
        verdict = f"beats the {other} by F1: its interval lies above zero"
    elif outcome.f1.high < 0:
        verdict = f"does not beat the {other} by F1: it is worse, its interval lies below zero"
    else:
        verdict = f"does not beat the {other} by F1: its interval includes zero"
    return f"The {model} {verdict} ({how(run)}; {differences(outcome)})."


def _retention(student: RunFile, teacher: RunFile, controls: list[tuple[RunFile, RunFile]]) -> str:
    outcome, ours, theirs = compare(student, teacher), model_cell(student.subjects[0]), model_cell(teacher.subjects[0])
    if outcome.retention is None:
        return f"The {theirs} has no F1 that the {ours} could retain ({how(student)})."
    if not beats_control(controls):
        against = f"The {ours} against the {theirs}: {differences(outcome)} ({how(student)})."
        return f"{against} Retention is not quoted, since the teacher was not shown to beat the control."
    return f"The {ours} retains {percent(outcome.retention)} of the F1 of the {theirs} ({how(student)}; {differences(outcome)})."


def beats_control(pairs: Sequence[tuple[RunFile, RunFile]]) -> bool:
    """Whether there is a control, and the F1 of the first is above that of every one with the whole interval."""
    return bool(pairs) and all(compare(run, control).f1.low > 0 for run, control in pairs)


def of_same_weights(pairs: Sequence[tuple[RunFile, RunFile]], model: RunFile) -> list[tuple[RunFile, RunFile]]:
    """Of pairs with a control those of this model on these questions, in whatever engine: not every engine measures every model."""
    return [pair for pair in pairs if (pair[0].subjects[0].sha256, questions_of(pair[0])) == (model.subjects[0].sha256, questions_of(model))]


def training_table(runs: Runs, link: Callable[[str, RunFile], str]) -> list[str]:
    """One row a training run."""
    rows = []
    for name, run in of_kind(runs, "training").items():
        r = run.results
        loss = "" if r.get("loss") is None else f"{r['loss']:.4f}"
        data = ", ".join(d.name for d in run.data if d.split == "training") or ", ".join(d.name for d in run.data)
        counts = (f"{r[key]:,}" for key in ("questions", "steps", "tokens"))
        rows.append((_title(run), data, *counts, duration(r["seconds"]), loss, _best(r), link(name, run)))
    return table(TRAINING_HEAD, rows) if rows else []


def timing_table(runs: Runs, kind: str, link: Callable[[str, RunFile], str]) -> list[str]:
    """One row a timing summary and one a ratio of medians, for kind "latency" or "load"."""
    rows: list[tuple[str, ...]] = []
    for name, run in of_kind(runs, kind).items():
        r = run.results
        what = ", ".join([*map(model_cell, run.subjects), str(r.get("workload", run.name)), *_counts(r)])
        for row, t in sorted(r.get("timings", {}).items()):
            engine = r.get("engines", {}).get(row, "")
            numbers = (f"{t[key]:,.2f}" for key in ("mean", "p50", "p90", "p99"))
            rows.append((what, f"{row} ({engine})" if engine else row, f"{t['count']:,}", *numbers, t["unit"], link(name, run)))
        for row, ratio in sorted(r.get("ratios", {}).items()):
            of = row.partition(",")[0] if row.startswith(("p50,", "p90,", "p99,")) else "median"
            rows.append((what, row, "", "", f"{interval(Interval.from_json(ratio))} times", "", "", f"ratio of {of}s", link(name, run)))
    return table(TIMING_HEAD, rows) if rows else []


def export_table(runs: Runs, link: Callable[[str, RunFile], str]) -> list[str]:
    """One row an exported package."""
    rows = []
    for name, run in of_kind(runs, "export").items():
        r = run.results
        sizes = (f"{r[key] / 1e6:.1f} MB" for key in ("package_bytes", "weight_bytes"))
        ports = ("; ".join(f"{port}: {kind}" for port, kind in sorted(r[key].items())) for key in ("inputs", "outputs"))
        models = ", ".join(map(model_cell, run.subjects))
        rows.append((models, str(r["target"]), str(r["precision"]), *sizes, str(r["specification_version"]), *ports, link(name, run)))
    return table(EXPORT_HEAD, rows) if rows else []


def interval(i: Interval) -> str:
    """ "78.31 [77.50, 79.10]" """
    return f"{i.value:.2f} [{i.low:.2f}, {i.high:.2f}]"


def percent(i: Interval) -> str:
    """ "98.1 % [97.0, 99.2]" """
    return f"{i.value:.1f} % [{i.low:.1f}, {i.high:.1f}]"


def signed(i: Interval) -> str:
    """ "+0.31 [-0.10, +0.72]"; without a sign where it rounds to zero."""
    value, low, high = (f"{x:+.2f}" if round(x, 2) else "0.00" for x in (i.value, i.low, i.high))
    return f"{value} [{low}, {high}]"


def duration(seconds: float) -> str:
    """ "2 h 05 min", "7 min 30 s" or "42 s" """
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


def _reference(found: Runs, run: RunFile) -> RunFile | None:
    """The last evaluation of the same weights and data by PyTorch in float32."""
    same = [
        other
        for other in found.values()
        if _is_reference(other.subjects[0]) and (other.subjects[0].sha256, questions_of(other)) == (run.subjects[0].sha256, questions_of(run))
    ]
    return run if run in same else max(same, key=lambda other: other.created, default=None)


def paired_runs(first: list[RunFile], second: list[RunFile]) -> list[tuple[RunFile, RunFile]]:
    """For each two models, the two runs of the same questions in the same engine and precision; the reference form where there is one."""
    chosen: dict[tuple[object, ...], tuple[RunFile, RunFile]] = {}
    for a in first:
        for b in second:
            s, t = a.subjects[0], b.subjects[0]
            same_form = (s.engine, s.precision) == (t.engine, t.precision)
            key = (s.name, t.name, questions_of(a))
            if same_form and questions_of(a) == questions_of(b) and (key not in chosen or _is_reference(s)):
                chosen[key] = (a, b)
    return list(chosen.values())


def _is_reference(subject: Subject) -> bool:
    return (subject.engine, subject.precision) == REFERENCE


def questions_of(run: RunFile) -> tuple[str, ...]:
    """What tells whether two evaluations are of the same questions."""
    return (*_hashes(run), str(run.results["per_question"].get("ids_sha256", "")))


def _hashes(run: RunFile) -> tuple[str, ...]:
    return tuple(item.sha256 for item in run.data)


def processor(run: RunFile) -> str:
    """What a run was measured on."""
    return str(run.environment.get("cpu", "a machine unknown"))


def of_kind(runs: Runs, kind: str) -> dict[str, RunFile]:
    """The runs of one kind, in their order."""
    return {name: run for name, run in runs.items() if run.kind == kind}


def order_of(subject: Subject) -> tuple[int, str, str]:
    """Teacher, student, control, then the others by name."""
    return ROLES.index(subject.role) if subject.role in ROLES else len(ROLES), subject.role, subject.name


def _title(run: RunFile) -> str:
    """Name, roles where they are others, and the weights that came out."""
    roles = ", ".join(dict.fromkeys(subject.role for subject in run.subjects))
    name = f"{run.name} ({roles})" if roles and roles != run.name else run.name
    return " ".join([name, *(f"`{subject.sha256[:12]}`" for subject in run.subjects)])


def model_cell(subject: Subject) -> str:
    """ "student `06d763ca7da0`": name, role where it is another, and the first digits of the sha256 of the weights."""
    name = subject.role if subject.name == subject.role else f"{subject.name} ({subject.role})"
    return f"{name} `{subject.sha256[:12]}`"


def form_cell(subject: Subject) -> str:
    """ "onnxruntime 1.31.1, fp32" """
    return f"{subject.engine} {subject.version}, {subject.precision}" if subject.engine else ""


def _data(run: RunFile) -> str:
    return ", ".join(item.name for item in run.data)


def how(run: RunFile) -> str:
    """ "onnxruntime fp32, 10,570 questions of dev.json, paired" """
    subject = run.subjects[0]
    return f"{subject.engine} {subject.precision}, {run.results['count']:,} questions of {_data(run)}, paired"


def differences(outcome: Comparison) -> str:
    """ "EM +1.00 [...], F1 +0.80 [...] points" """
    return f"EM {signed(outcome.exact_match)}, F1 {signed(outcome.f1)} points"


def _best(results: JSON) -> str:
    best = results.get("best")
    return scores_cell(best) if best else ""


def scores_cell(scores: JSON) -> str:
    """ "60.76 / 74.17 of 3,400": EM and F1, and of how many questions."""
    return f"{scores['exact_match']:.2f} / {scores['f1']:.2f} of {scores['count']:,}"


def _counts(results: JSON) -> list[str]:
    counts = []
    for key in ("requests", "failures", "requests_per_second"):
        if results.get(key) is not None:
            number = f"{results[key]:,}" if isinstance(results[key], int) else f"{results[key]:,.1f}"
            counts.append(f"{number} {key.replace('_per_second', ' a second')}")
    return counts
