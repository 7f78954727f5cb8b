"""The tables of RESULTS.md about what runs on phones: verified artefacts, compression, latency, the audited paper.

Rows are as in tables.py.  MB are 10^6 bytes, MiB 2^20; times are in the unit that stands beside them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence

from pocketqa.reporting.tables import (
    Runs,
    interval,
    model_cell,
    model_order,
    of_kind,
    order_of,
    processor,
    questions_cell,
    signed,
    table,
    timing_table,
)
from pocketqa.runs import RunFile, Subject
from pocketqa.statistics import Interval
from pocketqa.types import JSON

Link = Callable[[str, RunFile], str]

VERIFICATION_HEAD = (
    "artefact", "target, scheme", "package", "weights", "zipped", "questions", "EM [95 %]", "F1 [95 %]", "F1 against its model in float32",
    "same spans", "PSNR", "gate", "on the way", "measured",
)  # fmt: skip
COMPRESSION_HEAD = ("schemes of the weights", "weights", "F1", "F1 lost [95 %]", "")
LATENCY_HEAD = (
    "contestant", "queries", "p50", "p90", "p99", "tokenise + forward + decode", "load cold", "load warm", "first query cold", "first query warm",
    "peak memory", "of that for model and run",
)  # fmt: skip
RATIO_HEAD = ("how many times longer the first takes", "p50 [95 %]", "p90 [95 %]", "forward p50 [95 %]", "verdict")
SIZE_HEAD = ("model", "form", "parameters", "package", "weights", "zipped", "F1 against its model in float32", "measured")
AUDIT_HEAD = ("claim", "source", "published artefact", "ours", "conditions", "compares like with like")
UNLIKE = "no verdict: they compute other numbers of positions"
BUSY = "no verdict: busy machine"
FOLDERS = ("onnxruntime", "openvino", "pytorch")  # engines of a model folder, whose weights are float16 for all of them
FEW_GROUPS = 4  # groups of weights whose schemes are listed one by one


def verifications(runs: Runs, split: str) -> dict[str, RunFile]:
    """Verifications on a split, by role, model, target, scheme and date."""
    found = {name: run for name, run in of_kind(runs, "verification").items() if split in {d.split for d in run.data}}

    models = model_order(found)

    def order(item: tuple[str, RunFile]) -> tuple[object, ...]:
        r = item[1].results
        return (*models(item[1].subjects[0]), r["target"], r["layout"], -r["bytes"]["package"], item[1].created, item[0])

    return dict(sorted(found.items(), key=order))


def verification_table(found: Runs, link: Link) -> list[str]:
    """One row an artefact: its bytes, its own scores, what it lost, and what was found on the way."""
    rows = []
    for name, run in found.items():
        r = run.results
        agreement: JSON = r["agreement"] or {}
        scores = (interval(Interval.from_json(r["intervals"][key])) for key in ("exact_match", "f1"))
        rows.append(
            (
                model_cell(run.subjects[0]),
                form(r),
                *(megabytes(r["bytes"].get(key)) for key in ("package", "weights", "zipped")),
                questions_cell(r),
                *scores,
                _gained(r),
                _same_spans(agreement),
                _psnr(agreement),
                _gate(r["gate"]),
                _on_the_way(r),
                link(name, run),
            )
        )
    return table(VERIFICATION_HEAD, rows)


def form(results: JSON) -> str:
    """ "ios16, palette4": target, layout where it is not the usual one, and scheme of a verification."""
    layout = "" if results["layout"] == "standard" else f", layout {results['layout']}"
    return f"{results['target']}{layout}, {results['scheme']}"


def compression_lines(runs: Runs, link: Link) -> list[str]:
    """A table of combinations for each search, smallest first."""
    lines: list[str] = []
    for name, run in of_kind(runs, "compression").items():
        r = run.results
        budget = "" if r["max_f1_drop"] is None else f" At most {r['max_f1_drop']:g} points of F1 may be lost."
        kept = None if r["selected"] is None else r["points"][r["selected"]]
        points = sorted(r["points"], key=lambda point: (point["bytes"], -point["f1"]))
        front = pareto(points)
        rows = []
        for i, point in enumerate(points):
            remark = "selected" if point is kept else "on the front" if i in front else ""
            lost = interval(Interval.from_json(point["f1_loss"]))
            rows.append((combination(point["chosen"]), megabytes(point["bytes"]), f"{point['f1']:.2f}", lost, remark))
        before, after = (megabytes(r.get(key, {}).get("package")) for key in ("bytes_before", "bytes"))
        made = f" Package: {after}, was {before}." if before and after else ""
        what = f"{', '.join(map(model_cell, run.subjects))}: {r['workload']}.{budget}{made} {link(name, run)}"
        lines += [*([""] if lines else []), what, "", *table(COMPRESSION_HEAD, rows)]
    return lines


def combination(chosen: JSON) -> str:
    """ "embeddings int8, layers palette4", or how many weights have each scheme where there are many; what is not mentioned is float16."""
    if len(chosen) <= FEW_GROUPS:
        return ", ".join(f"{group} {scheme}" for group, scheme in chosen.items()) or "float16"
    counts = Counter(str(scheme) for scheme in chosen.values())
    return ", ".join(f"{count} in {scheme}" for scheme, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def pareto(points: Sequence[JSON]) -> set[int]:
    """Positions of the points than which no other has both fewer bytes and a higher F1 (at least one of them really so)."""
    return {
        i
        for i, a in enumerate(points)
        if not any(b["bytes"] <= a["bytes"] and b["f1"] >= a["f1"] and (b["bytes"], b["f1"]) != (a["bytes"], a["f1"]) for b in points)
    }


def races(runs: Runs) -> dict[str, RunFile]:
    """Latencies that say how they were taken, other than the zoo."""
    return {name: run for name, run in of_kind(runs, "latency").items() if "stages" in run.results and "zoo" not in run.results}


def size_lines(runs: Runs, link: Link, weights: Collection[str] | None = None) -> list[str]:
    """A table of what models weigh, one row for each form, the largest first: folders and programs that raced, and verified bundles.

    Where a form was measured more than once, the newest race counts, and the verification on SQuAD dev or else of most questions.  weights: sha256 of
    the models to show; None for all.
    """
    found: dict[tuple[str, str], tuple[RunFile, Subject, JSON, tuple[str, ...]]] = {}
    for name, run in sorted(races(runs).items(), key=lambda item: item[1].created):
        for subject in sorted(run.subjects, key=lambda s: -len(s.name)):  # one that is asked other queries has a longer name, and the same files
            label = _label(subject)
            if label in run.results.get("bytes", {}):
                folder = subject.engine in FOLDERS and subject.precision != "int8"
                kind = "model folder" if folder else f"{subject.engine} {subject.precision}"
                who = f"{subject.name} (random weights)" if _is_random(run, label) else model_cell(subject)
                found[subject.sha256, kind] = (run, subject, run.results["bytes"][label], (who, kind, "", link(name, run)))

    def worth(item: tuple[str, RunFile]) -> tuple[object, ...]:
        return "squad-dev" in {d.split for d in item[1].data}, item[1].results["count"], item[1].created

    for name, run in sorted(of_kind(runs, "verification").items(), key=worth):
        subject, kind = run.subjects[0], form(run.results)
        found[subject.sha256, kind] = (run, subject, run.results["bytes"], (model_cell(subject), kind, _gained(run.results), link(name, run)))
    shown = [entry for (sha256, _), entry in found.items() if weights is None or sha256 in weights]
    newest = {sha256: max(run.created for run, subject, _, _ in shown if subject.sha256 == sha256) for sha256 in {entry[1].sha256 for entry in shown}}
    parameters = {subject.sha256: f"{sizes['parameters'] / 1e6:.1f} million" for _, subject, sizes, _ in shown if "parameters" in sizes}
    shown.sort(key=lambda entry: (-entry[2]["package"], entry[3]))
    shown.sort(key=lambda entry: newest[entry[1].sha256], reverse=True)
    shown.sort(key=lambda entry: order_of(entry[1]))
    rows = []
    for _, subject, sizes, (who, kind, gained, origin) in shown:
        bytes_of = (megabytes(sizes.get(key)) for key in ("package", "weights", "zipped"))
        rows.append((who, kind, parameters.get(subject.sha256, ""), *bytes_of, gained, origin))
    return table_if_any(SIZE_HEAD, rows)


def latency_lines(runs: Runs, link: Link) -> list[str]:
    """A part for each race, the newest first; then the latencies of earlier versions."""
    found, older = races(runs), {name: run for name, run in of_kind(runs, "latency").items() if "stages" not in run.results}
    newest = sorted(found.items(), key=lambda item: item[1].created, reverse=True)
    parts = [part for name, run in newest for part in _race_parts(run, link(name, run))]
    return joined([*parts, timing_table(older, "latency", link)])


def _race_parts(run: RunFile, origin: str) -> list[list[str]]:
    """Heading, circumstances, times, ratios and remarks of one race."""
    r = run.results
    return [
        [f"### {_workload(r)}, {threads_cell(r)}, {r.get('mode', 'mode not said')}"],
        [f"{r['workload']}. {device_text(r)}; {rules_text(r)}. {origin}", *(f"{sentence}." for sentence in busy_sentences(run))],
        table_if_any(LATENCY_HEAD, (_latency_row(run, label) for label in r["timings"])),
        table_if_any(RATIO_HEAD, _ratio_rows(r)),
        [f"- {remark}" for remark in (*padding_remarks(r), *r.get("remarks", []))],
    ]


def question_times(runs: Runs, link: Link) -> dict[tuple[str, str, str], str]:
    """Milliseconds of one question (p50 / p90), by weights, engine and precision: of races on questions the longest on a quiet machine over the
    fewest threads; where the longest was on a busy machine, that is said."""
    raced = {name: run for name, run in races(runs).items() if run.results["workload"].startswith("squad") and run.results.get("threads")}
    times: dict[tuple[str, str, str], str] = {}

    def worth(item: tuple[str, RunFile]) -> tuple[object, ...]:
        r = item[1].results
        return (-r["threads"], r["mode"] == "full", not r.get("busy"), item[1].created)

    for name, run in sorted(raced.items(), key=worth):
        for subject in run.subjects:
            found = run.results["timings"].get(_label(subject))
            if found is not None:
                threads = f"{subject.threads} thread{'' if subject.threads == 1 else 's'}"
                where = f"{threads} of {processor(run)}{', a busy machine' if run.results.get('busy') else ''}"
                cell = f"{found['p50']:.1f} / {found['p90']:.1f} on {where}, {link(name, run)}"
                times[subject.sha256, subject.engine, subject.precision] = cell
    return times


def busy(run: RunFile) -> list[str]:
    """Why the machine of a latency counts as busy."""
    return list(run.results.get("load", {}).get("reasons", ())) or ["no reason was stored"] if run.results.get("busy") else []


def busy_lines(run: RunFile) -> list[str]:
    """A remark with all reasons; none for a quiet machine."""
    return [f"- {sentence}" for sentence in busy_sentences(run)]


def busy_sentences(run: RunFile) -> list[str]:
    """The same without its mark of a list."""
    reasons = busy(run)
    return [f"Busy machine, so its times are not to be trusted: {'; '.join(reasons)}"] if reasons else []


def audit_lines(runs: Runs, link: Link) -> list[str]:
    """The paper's phone experiment: claims, artefacts, ours, and whether like is compared with like."""
    parts = []
    for name, run in of_kind(runs, "latency").items():
        r = run.results
        if "audit" not in r:
            continue
        rows = []
        for claim in r["audit"]:
            flag = "yes" if claim["like_for_like"] else f"NO: {claim['why_not']}"
            rows.append((*(str(claim[key]) for key in ("claim", "source", "published", "ours", "conditions")), flag))
        parts += [
            [f"{r.get('title', run.name)}; {rules_text(r)}. {link(name, run)}"],
            busy_sentences(run),
            table(AUDIT_HEAD, rows),
            [f"- {caveat}" for caveat in r.get("caveats", [])],
        ]
    return joined(parts)


def megabytes(count: float | None) -> str:
    """ "45.3 MB"; nothing for None."""
    return "" if count is None else f"{count / 1e6:.1f} MB"


def table_if_any(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table, or no lines for no rows."""
    found = list(rows)
    return table(head, found) if found else []


def joined(parts: Iterable[list[str]]) -> list[str]:
    """Blocks of lines with an empty line between each two; empty blocks are left out."""
    lines: list[str] = []
    for part in parts:
        if part:
            lines += [*([""] if lines else []), *part]
    return lines


def _gained(results: JSON) -> str:
    """F1 of a verified artefact beyond that of its model in float32."""
    return signed(Interval.from_json(results["agreement"]["f1_loss"]).scaled(-1)) if results["agreement"] else "not measured"


def _same_spans(agreement: JSON) -> str:
    if not agreement:
        return ""
    calls, count = agreement["close_calls"], agreement["differing_count"]
    kind = f"every one with a gap below {calls['limit']:g}" if calls["all"] else f"not all with a gap below {calls['limit']:g}"
    return f"{agreement['same_spans']:.2f} % ({count:,} differ, {kind})" if count else f"{agreement['same_spans']:.2f} %"


def _psnr(agreement: JSON) -> str:
    if not agreement:
        return ""
    return "no difference" if agreement["psnr"] is None else f"{agreement['psnr']:.1f} dB"


def _gate(gate: JSON | None) -> str:
    if gate is None:
        return "none"
    loss, limit = Interval.from_json(gate["f1_loss"]), f"limit {gate['limit']:g}"
    if gate["passed"]:
        return f"passed, {limit}"
    if gate.get("questions", 0) < gate.get("least_questions", 0):
        return f"NOT SHOWN: {gate['questions']:,} questions, {limit}, which needs {gate['least_questions']:,}"
    return f"FAILED: loss of {loss.low:.2f} or more, {limit}" if loss.low >= gate["limit"] else f"NOT SHOWN: loss up to {loss.high:.2f}, {limit}"


def _on_the_way(r: JSON) -> str:
    found = [f"{len(r['hazards'])} hazards"] if r["hazards"] else []
    found += [f"{sum(r[key].values()):,} values {what}" for key, what in (("non_finite", "not finite"), ("overflow", "beyond float16")) if r[key]]
    return ", ".join(found) or "nothing"


def _latency_row(run: RunFile, label: str) -> tuple[str, ...]:
    r = run.results
    t, stages = r["timings"][label], r["stages"].get(label, {})
    split = " + ".join(f"{stages[stage]['p50']:,.2f}" if stage in stages else "?" for stage in ("tokenise", "forward", "decode"))
    times = (f"{t[key]:,.2f} {t['unit']}" for key in ("p50", "p90", "p99"))
    loads = (r.get(key, {}).get(label, {}).get(kind) for key in ("load_seconds", "first_run_seconds") for kind in ("cold", "warm"))
    seconds = ("" if value is None else f"{value:.2f} s" for value in loads)
    found = r.get("peak_memory_mib", {}).get(label)
    memory = found if isinstance(found, dict) else {"peak": found}
    memories = ("" if value is None else f"{value:,.0f} MiB" for value in (memory.get("peak"), added_memory(memory)))
    cells = (f"{t['count']:,}", *times, f"{split} {t['unit']}", *seconds, *memories)
    return (f"{label}{_weights(run, label)}", *cells)


def _ratio_rows(r: JSON) -> Iterable[tuple[str, ...]]:
    for name, ratio in r["ratios"].items():
        others = (r.get(key, {}).get(name) for key in ("p90_ratios", "forward_ratios"))
        cells = ("" if found is None else interval(Interval.from_json(found)) for found in (ratio, *others))
        unlike = _workload(r).startswith("fixed") and len({_positions(r, label) for label in name.split(" / ")}) > 1
        yield (name, *cells, UNLIKE if unlike else BUSY if r.get("busy") else str(r.get("verdicts", {}).get(name, "")))


def added_memory(memory: JSON) -> float | None:
    """MiB of the peak that were not there before the model was loaded: libraries of an engine differ, and phones have others."""
    known = memory.get("peak") is not None and memory.get("before_load") is not None
    return float(memory["peak"] - memory["before_load"]) if known else None


def padding_remarks(r: JSON) -> list[str]:
    """Who computed more positions than there were tokens."""
    padded = {label: found for label, found in r.get("tokens", {}).items() if found["positions"] > found["mean"]}
    return [
        f"{label}: computes {found['positions']:,.1f} positions a query for {found['mean']:,.1f} tokens, since its program takes fixed lengths"
        for label, found in padded.items()
    ]


def _positions(r: JSON, label: str) -> float | None:
    found = r.get("tokens", {}).get(label)
    return None if found is None else float(found["positions"])


def _label(subject: Subject) -> str:
    """The contestant of a race that a subject of its run file is."""
    return f"{subject.name}, {subject.engine} {subject.precision}"


def _is_random(run: RunFile, label: str) -> bool:
    """Whether the parameters of a contestant come from its configuration alone."""
    return bool(run.results.get("origin", {}).get(label) == "configuration")


def _weights(run: RunFile, label: str) -> str:
    """ " `06d763ca7da0`", or that they are random."""
    if _is_random(run, label):
        return " (random weights)"
    return "".join([f" `{s.sha256[:12]}`" for s in run.subjects if _label(s) == label][:1])


def threads_cell(r: JSON) -> str:
    """ "2 threads", or Core ML's compute unit, which decides on its threads."""
    count = r.get("threads")
    if count is None:
        return f"compute unit {r['device']['compute_unit']}" if "device" in r else "threads not said"
    return f"{count} {'thread' if count == 1 else 'threads'}"


def _workload(r: JSON) -> str:
    return str(r["workload"]).split(":")[0]


def device_text(r: JSON) -> str:
    """ "iPhone 15 Pro (phone), iOS 17.5, compute unit ne, thermal state nominal" """
    device = r.get("device")
    if device is None:
        return "not said"
    thermal = f", thermal state {device['thermal_state']}" if device["thermal_state"] else ""
    return f"{device['name']} ({device['kind']}), {device['os']}, compute unit {device['compute_unit']}{thermal}"


def rules_text(r: JSON) -> str:
    """ "full, valid": the mode of a measurement of latency, whether its rules were kept, and whether the machine was busy."""
    rules = r.get("rules", {})
    flag = ", BUSY MACHINE" if r.get("busy") else ""
    return f"{r.get('mode', 'mode not said')}, {'valid' if rules.get('valid') else 'not valid'}{flag}"
