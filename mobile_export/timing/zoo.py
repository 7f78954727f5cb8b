"""The zoo: relatives of BERT counted and timed here, beside what their papers publish (`pocketqa benchmark --preset zoo`).

Every model is made from its configuration with random weights, since neither its size nor the time of a dense forward pass depends on their
values, and timed in turns with BERT-base: each query goes to both, moments apart, so that the speed-up is a ratio of pairs.  One engine runs them
all, and what is timed is the forward pass.  A published speed-up was measured on other hardware with other software, often with large batches: it
stands beside ours with its conditions, to be compared with care and not to be met.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from mobile_export.checkpoint.geometry import make_folder
from mobile_export.timing.contestants import folder_contestant
from mobile_export.timing.counting import Counts, Shape, count, shape_of
from mobile_export.timing.latency import server_device
from mobile_export.timing.latency_text import busy_lines
from mobile_export.timing.machine_load import Load
from mobile_export.timing.single_stream import Race, Rules, Say, Seconds, race
from mobile_export.timing.sizes import by_precision
from mobile_export.timing.workloads import fixed_workload
from mobile_export.timing.zoo_models import BASELINE, REPORTED, SOURCES, TOKENS, ZOO, Model, Published, Rounded, Variant
from pocketqa.errors import OptionsError
from pocketqa.features import Tokenizer
from pocketqa.reporting.zoo_tables import zoo_tables
from pocketqa.runs import DataFile, Subject, median_ratio, summarise_times, timing_results
from pocketqa.types import JSON, RuntimeInfo

WORTH_A_WORD = 2.0  # percent; a larger difference from a published count is explained
COUNTED = ("parameters", "flops")
CONVENTION = (
    "parameters of the encoder with its pooler, as papers count them; operations of one query at batch 1, two for each multiply-add, of linear maps, "
    "of the two products of attention and of the span head"
)


@dataclass(frozen=True, slots=True)
class Visit:
    """What a run file of the zoo is made of."""

    results: JSON
    subjects: tuple[Subject, ...]
    data: tuple[DataFile, ...]


def run(
    rules: Rules,
    *,
    engine: str = "onnxruntime",
    threads: int = 1,
    names: Sequence[str] = (),
    seed: int = 0,
    load_average: float | None = None,
    say: Say = lambda line: None,
) -> Visit:
    """Count every model, and time every network once in turns with BERT-base.

    rules: how many queries; their least duration does not apply, since the fastest of the zoo would have to answer BERT-base's queries for an hour.
    names: of the models that are timed (default: all; the others are counted only).  Raises OptionsError for a name that is not in the zoo.
    """
    wanted = _chosen(names)
    rules = replace(rules, seconds=0.0)
    races: dict[str, Race] = {}
    with tempfile.TemporaryDirectory(prefix="pocketqa-zoo-") as folder:
        for model, timed in _races(wanted, Path(folder), engine, threads, rules, seed, load_average, say):
            races[model.name] = timed
            if timed.interrupted:
                break
    rows = [_row(model, races) for model in ZOO] + [
        {**_titled(r.name, r.note), "reported": [_quoted(p, r.published) for p in r.published]} for r in REPORTED
    ]
    subjects, data = {}, {}
    for timed in races.values():
        for entry in timed.entries:
            subjects[entry.contestant.name] = entry.contestant.subject(entry.warm.info)
        data.update({file.sha256: file for file in timed.workload.data})
    return Visit(_results(rows, races, rules), tuple(subjects.values()), tuple(data.values()))


def lines(results: JSON) -> list[str]:
    """Tables, notes and the flag of a busy machine, as Markdown."""
    return ["", f"{results['workload']}, {results['mode']}", *(line for part in zoo_tables(results) for line in ("", *part)), *busy_lines(results)]


def difference(ours: int, published: Rounded, shape: Shape, quantity: str, variant: Variant | None) -> JSON:
    """A published count beside ours: the difference in percent of the published one, and where it is worth a word, what explains it."""
    percent = _percent(ours, published)
    explanation = ""
    if abs(percent) > WORTH_A_WORD:
        explanation = "nothing that we found explains it"
        if abs(ours - published.value) <= published.slack:
            explanation = "within the rounding of the published figure"
        elif variant is not None:
            other = _quantity(count(variant.change(shape), TOKENS), quantity)
            if abs(_percent(other, published)) <= WORTH_A_WORD:
                explanation = f"{variant.description}, it would be {_shown(other)}" + (f", {variant.why_not}" if variant.why_not else "")
    return {"text": published.text, "difference_percent": percent, "explanation": explanation}


def speed_up(published: Published) -> float | None:
    """How many times faster than BERT-base a source says a model is: as printed, or from the times that it gives of both."""
    if published.speed_up is not None:
        return published.speed_up.value
    baseline = next(model for model in ZOO if model.name == BASELINE)
    times = [p.time.value for p in baseline.published if p.source == published.source and p.time is not None]
    return round(times[0] / published.time.value, 2) if times and published.time is not None else None


def _chosen(names: Sequence[str]) -> list[Model]:
    known = [model.name for model in ZOO]
    if unknown := [name for name in names if name not in known]:
        raise OptionsError(f"Expected names out of the zoo ({', '.join(known)}), found {', '.join(map(repr, unknown))}.")
    return [model for model in ZOO if model.name != BASELINE and (not names or model.name in names)]


def _races(
    wanted: Sequence[Model], folder: Path, engine: str, threads: int, rules: Rules, seed: int, load_average: float | None, say: Say
) -> Iterator[tuple[Model, Race]]:
    """Each network against BERT-base; models of one shape are timed once."""
    baseline = next(model for model in ZOO if model.name == BASELINE)
    say(f"making {BASELINE} from its configuration")
    first = folder_contestant(make_folder(baseline.geometry, folder / "baseline"), engine, threads, name=BASELINE, role="baseline")
    workload = fixed_workload(TOKENS, Tokenizer(first.tokenizer))
    networks: list[Model] = []
    for number, model in enumerate(wanted, 1):
        if any(_same_network(model, other) for other in networks):
            continue
        networks.append(model)
        say(f"making {model.name} from its configuration ({number} of {len(wanted)})")
        made = make_folder(model.geometry, folder / "model")
        second = folder_contestant(made, engine, threads, name=model.name, role="zoo")
        yield model, race((first, second), workload, rules, seed=seed, cold=False, load_average=load_average, say=say)
        shutil.rmtree(made)


def _same_network(first: Model, second: Model) -> bool:
    return (first.geometry.model_type, first.geometry.config) == (second.geometry.model_type, second.geometry.config)


def _row(model: Model, races: dict[str, Race]) -> JSON:
    shape = shape_of(model.geometry)
    counts = count(shape, TOKENS)
    row: JSON = {
        **_titled(model.name, model.note),
        "layers": shape.layers,
        "hidden": shape.hidden,
        "parameters": counts.encoder,
        "network_parameters": counts.network,
        "flops": counts.flops,
        "bytes": by_precision(counts.network),
        "published": [_published(said, model, shape, counts) for said in model.published],
    }
    timed = next((other for other in ZOO if other.name in races and _same_network(model, other)), None)
    if timed is not None:
        base, own = _pairs(races[timed.name])
        row["latency"], row["baseline_latency"] = summarise_times(own).to_json(), summarise_times(base).to_json()
        row["speed_up"] = median_ratio(base, own).to_json()
        row["same_network_as"] = "" if timed is model else timed.name
    return row


def _pairs(timed: Race) -> tuple[Seconds, Seconds]:
    """Seconds (N,) of the forward pass, of BERT-base and of the model."""
    base, own = timed.entries
    return base.seconds("forward"), own.seconds("forward")


def _titled(name: str, note: str) -> JSON:
    return {"name": name, "note": note}


def _published(said: Published, model: Model, shape: Shape, counts: Counts) -> JSON:
    found = _quoted(said, model.published)
    for quantity in COUNTED:
        figure = getattr(said, quantity)
        if figure is not None:
            found[quantity] = difference(_quantity(counts, quantity), figure, shape, quantity, model.variant)
    return found


def _quoted(said: Published, beside: Sequence[Published]) -> JSON:
    source = SOURCES[said.source]
    quoted: JSON = {"source": source.citation, "place": source.place, "confirmed": said.confirmed}
    for quantity in (*COUNTED, "time"):
        figure = getattr(said, quantity)
        if figure is not None:
            quoted[quantity] = {"text": figure.text}
    if (times := speed_up(said)) is not None:
        quoted["speed_up"] = {"value": times, "derived": said.speed_up is None}
    if (said.time or said.speed_up) and source.timed_on:
        quoted["timed_on"] = source.timed_on
    return quoted


def _quantity(counts: Counts, quantity: str) -> int:
    return counts.encoder if quantity == "parameters" else counts.flops


def _percent(ours: int, published: Rounded) -> float:
    return round(100 * (ours / published.value - 1), 2)


def _shown(number: int) -> str:
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.2f} M"


def _results(rows: list[JSON], races: dict[str, Race], rules: Rules) -> JSON:
    timings, ratios, runtimes = {}, {}, dict[str, RuntimeInfo]()
    for name, timed in races.items():
        base, own = _pairs(timed)
        timings[name], ratios[f"{BASELINE} / {name}"] = summarise_times(own), median_ratio(base, own)
        runtimes[name] = timed.entries[1].warm.info
    problems = [problem for timed in races.values() for problem in timed.problems()]
    load = _worst([timed.load for timed in races.values()])
    extra: JSON = {
        "mode": rules.mode,
        "rules": {**asdict(rules), "valid": False, "problems": [*problems, "the least duration of MLPerf's rules was not asked for"]},
        "tokens": TOKENS,
        "lengths": [TOKENS],
        "convention": CONVENTION,
        "origin": "configuration",
        "stages": {n: {s: summarise_times(t.entries[1].seconds(s)).to_json() for s in ("tokenise", "forward", "decode")} for n, t in races.items()},
        "busy": load.reasons() != [],
        "load": load.to_json() | {"races": {name: timed.load.to_json() for name, timed in races.items()}},
        "device": server_device(),
        "zoo": rows,
    }
    described = next((timed.workload.description for timed in races.values()), f"{TOKENS} tokens, not timed")
    return timing_results(f"zoo: forward pass of {described}, each model in turns with {BASELINE}", timings, ratios, runtimes, extra)


def _worst(loads: Sequence[Load]) -> Load:
    """The largest of each figure over all races, as far as it is known."""
    return Load(**{figure.name: max((v for load in loads if (v := getattr(load, figure.name)) is not None), default=None) for figure in fields(Load)})
