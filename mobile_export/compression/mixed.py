"""A scheme for each weight: the smallest bundle whose loss of F1 is shown to lie within a budget.

1. Sensitivity: one weight in one scheme at a time, all others in float16, on a sample of questions.  The measure is the mean Kullback-Leibler
   divergence, in nats, of the distributions over passage tokens (start and end) from those of the float16 program: smooth, where F1 jumps.
2. Front: from all float16, the change that costs least divergence for each byte saved, then the next, as if divergences added up.
3. Points: some of the front are measured for what counts, the paired loss of F1 on the development split; the last ones halve the distance between
   the smallest point that is within the budget and the next one that is not.

All of it runs in the interpreter, with the values that the compressed package would hold in place of the stored ones.  Logits are kept on disk, so
that a search that was interrupted is repeated in no time up to where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mobile_export.bundle import Bundle
from mobile_export.compression import quantisation
from mobile_export.compression.compression import Part, compressible, parts_of
from mobile_export.compression.pareto import Point, Schemes, explore, greedy_changes, key_of
from mobile_export.compression.quantisation import Form, quantise
from mobile_export.interpreter.interpreter import Interpreter
from mobile_export.interpreter.mlprogram import Program, open_program
from mobile_export.targets import Target
from mobile_export.verification.artefact import code_hash, reader_over
from mobile_export.verification.isolated import IsolatedRuntime
from mobile_export.verification.verification import measure_bundle, measure_with
from pocketqa import __version__, squad
from pocketqa.evaluation import Measured, evaluation_windows
from pocketqa.features import Encoded, padded_flags
from pocketqa.runtimes.cached import CachedRuntime
from pocketqa.statistics import Interval, loss_interval, passes_gate
from pocketqa.types import Batch, QAExample, Request, RuntimeInfo, SpanLogits

CANDIDATES = ("int8", "palette6", "int4", "palette4")  # sparse is not among them: int8 is smaller, and nearer to the original
PROGRESS_SECONDS = 10.0

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """budget: percent points of F1; sample: questions that sensitivities are measured on; points: of the front whose F1 is measured, at most;
    cache: folder for logits; seed: of the sample.
    """

    budget: float
    sample: int
    points: int
    cache: Path
    seed: int = 0
    threads: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """points: largest first; selected: the smallest within the budget, None where none is; forms: weights already quantised, by name and scheme."""

    points: tuple[Point, ...]
    selected: Point | None
    sensitivity: dict[str, dict[str, float]]
    windows: int  # that the sensitivities were measured on
    reference: Measured
    forms: Mapping[tuple[str, str], Form]


def candidates(target: Target) -> tuple[str, ...]:
    """The schemes that a weight may take on the target, besides fp16."""
    return tuple(scheme for scheme in CANDIDATES if scheme in target.forms)


def search(bundle: Bundle, examples: Sequence[QAExample], options: SearchOptions, say: Say) -> Outcome:
    """Look for the smallest combination within the budget.  Raises what the interpreter and the reader raise."""
    trials = Trials(bundle, options)
    weights = compressible(trials.program)
    schemes = candidates(bundle.target)
    chosen = np.sort(np.random.default_rng(options.seed).permutation(len(examples))[: options.sample])
    sample = trials.encode([examples[i] for i in chosen])
    say(f"{len(weights)} weights x {', '.join(schemes)}: sensitivity on {len(sample.windows)} windows, then F1 of up to {options.points} points")
    sensitivity = measure_sensitivity(trials, list(weights), schemes, sample, say)
    sizes = {name: _sizes(trials.program, name, schemes) for name in weights}
    changes = greedy_changes(sizes, sensitivity)
    say(f"a front of {len(changes) + 1} combinations; float16 on {len(examples)} questions first, then the points, each about as long")
    with IsolatedRuntime(bundle.path, threads=options.threads) as runtime:
        reference = measure_bundle(bundle, runtime, examples, options.cache, progress=True)

    def evaluate(state: Schemes) -> Point:
        point = trials.point(state, examples, reference)
        say(f"  {point.bytes / 1e6:.2f} MB of weights: F1 {point.f1:.2f}, loss {_text(point.loss)}")
        return point

    total = sum(part.before for part in parts_of(trials.program, {}))
    points = explore(changes, total, evaluate, options.points, options.budget)
    within = [point for point in points if point.schemes and passes_gate(point.loss, options.budget, len(examples))]
    selected = min(within, key=lambda point: point.bytes, default=None)
    return Outcome(tuple(points), selected, sensitivity, len(sample.windows), reference, trials.forms)


def measure_sensitivity(trials: Trials, names: Sequence[str], schemes: Sequence[str], sample: Encoded, say: Say) -> dict[str, dict[str, float]]:
    """Weight -> scheme -> divergence of the program in which only this weight is stored so."""
    on_passage = padded_flags((window.context_mask for window in sample.windows), max(map(len, sample.windows)))  # (W, T)
    reference = trials.logits({}, sample)
    found: dict[str, dict[str, float]] = {name: {} for name in names}
    tell = _Countdown(len(names) * len(schemes), say)
    for name in names:
        for scheme in schemes:
            found[name][scheme] = divergence(reference, trials.logits({name: scheme}, sample), on_passage)
            tell.one_more(f"{name} {scheme}: {found[name][scheme]:.2e}")
    return found


def divergence(reference: SpanLogits, trial: SpanLogits, on_passage: NDArray[np.bool_]) -> float:
    """Mean over windows, starts and ends of KL(reference || trial) over the passage tokens, in nats.  Logits and flags (W, T); windows without any
    passage token do not count.
    """
    rows = on_passage.any(1)
    total = 0.0
    for wanted, found in ((reference.start, trial.start), (reference.end, trial.end)):
        p, q = (_log_softmax(logits[rows], on_passage[rows]) for logits in (wanted, found))  # (W, T)
        total += float(np.where(on_passage[rows], np.exp(p) * (p - q), 0).sum(1).mean())
    return max(0.0, total / 2)  # rounding leaves some of 0 as -1e-17


class Trials:
    """Programs in which some weights have the values that a compressed package would give them."""

    def __init__(self, bundle: Bundle, options: SearchOptions) -> None:
        self.bundle, self.options = bundle, options
        self.program: Program = open_program(bundle.package)
        self.forms: dict[tuple[str, str], Form] = {}
        if options.threads:
            torch.set_num_threads(options.threads)
        self._weights = compressible(self.program)
        self._code = hashlib.sha256(Path(quantisation.__file__).read_bytes()).hexdigest()

    def encode(self, examples: Sequence[QAExample]) -> Encoded:
        """The examples as the bundle's windows."""
        requests = [Request(example.question, (example.context,)) for example in examples]
        return reader_over(self.bundle, _Trial(self, {})).encode(requests, evaluation_windows(self.bundle.window))

    def logits(self, schemes: Schemes, encoded: Encoded) -> SpanLogits:
        """Logits (W, T)."""
        runtime = CachedRuntime(_Trial(self, schemes), self.options.cache, self._identity(schemes))
        return reader_over(self.bundle, runtime).forward(encoded)

    def point(self, schemes: Schemes, examples: Sequence[QAExample], reference: Measured) -> Point:
        """The loss of F1 against the reference, with its paired interval over articles."""
        reader = reader_over(self.bundle, _Trial(self, schemes))
        measured = measure_with(reader, self.bundle.window, examples, self._identity(schemes), self.options.cache, progress=True)
        loss = loss_interval(reference.f1, measured.f1, squad.groups_of(examples)).scaled(100)
        return Point(dict(schemes), sum(part.after for part in parts_of(self.program, schemes)), measured.scores.f1, loss)

    def interpreter(self, schemes: Schemes) -> Interpreter:
        """The program with these weights replaced."""
        return Interpreter(self.program, replace={name: self._form(name, scheme).decode() for name, scheme in schemes.items()})

    def _form(self, name: str, scheme: str) -> Form:
        if (name, scheme) not in self.forms:
            self.forms[name, scheme] = quantise(self._weights[name].value().astype(np.float16), scheme)
        return self.forms[name, scheme]

    def _identity(self, schemes: Schemes) -> tuple[str, ...]:
        package = {name: sha256 for name, sha256 in self.bundle.manifest.files.items() if name.startswith(self.bundle.package.name)}
        return (json.dumps(package, sort_keys=True), code_hash(), self._code, key_of(schemes))


class _Trial:
    """A trial as an engine.  It is made ready when it is first needed: logits that lie on disk cost nothing."""

    max_batch: int | None = None

    def __init__(self, trials: Trials, schemes: Schemes) -> None:
        self._trials, self._schemes = trials, schemes
        self._interpreter: Interpreter | None = None
        self.lengths: tuple[int, ...] | None = trials.bundle.lengths
        self.info = RuntimeInfo("interpreter", f"{__version__}, PyTorch {torch.__version__}", "mixed", torch.get_num_threads())

    def forward(self, batch: Batch) -> SpanLogits:
        """Logits (B, T).  Raises EngineError."""
        self._interpreter = self._interpreter or self._trials.interpreter(self._schemes)
        return SpanLogits(*self._interpreter.run(batch.ids))


class _Countdown:
    """Says how far it is, and the time left, at most every few seconds."""

    def __init__(self, total: int, say: Say) -> None:
        self._total, self._say = total, say
        self._done = 0
        self._began = self._told = time.monotonic()

    def one_more(self, what: str) -> None:
        """Another one is done."""
        self._done += 1
        now = time.monotonic()
        if now - self._told > PROGRESS_SECONDS:
            left = (now - self._began) / self._done * (self._total - self._done)
            self._say(f"{self._done}/{self._total} {what}, {left / 60:.1f} min left")
            self._told = now


def _sizes(program: Program, name: str, schemes: Sequence[str]) -> dict[str, int]:
    """Scheme -> bytes of one weight."""

    def part(scheme: str) -> Part:
        return next(part for part in parts_of(program, {name: scheme}) if part.name == name)

    return {scheme: part(scheme).after for scheme in ("fp16", *schemes)}


def _log_softmax(logits: NDArray[np.float32], flags: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(W, T) over the flagged positions of each row; what stands elsewhere means nothing, but is finite."""
    values = np.where(flags, logits.astype(np.float64), -1e30)
    values -= values.max(1, keepdims=True)
    return np.asarray(values - np.log(np.where(flags, np.exp(values), 0).sum(1, keepdims=True)))


def _text(loss: Interval) -> str:
    return f"{loss.value:+.2f} ({loss.low:+.2f} to {loss.high:+.2f})"
