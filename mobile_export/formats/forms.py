"""`pocketqa package MODEL --form NAME --data FILE`: a form of a model folder in int8, kept only where it is shown to cost little.

The gate (design, decision 4): the upper end of the paired 95 % bootstrap interval of the F1 loss against the folder's own graph in float32, over the
questions given, lies below the limit.  Articles are drawn, not questions, since the questions of one article are not independent.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.metadata
import random
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from mobile_export.tools import check_installed
from mobile_export.verification.comparison import check_questions, is_squad_dev
from pocketqa import __version__, metrics, squad
from pocketqa.errors import EngineError, OptionsError
from pocketqa.evaluation import Values, evaluation_windows, judged, predict
from pocketqa.features import Encoded, Tokenizer, make_batches
from pocketqa.folders import Manifest, ModelFolder, atomic_folder, write_manifest
from pocketqa.golden import Golden, replay
from pocketqa.reader import Reader
from pocketqa.runs import SPLITS, Interval, passes_gate
from pocketqa.runtimes.base import Runtime
from pocketqa.runtimes.forms import FORMS, INT8, form_folder
from pocketqa.runtimes.onnx import OnnxRuntime
from pocketqa.statistics import loss_interval
from pocketqa.types import JSON, Batch, QAExample, Request, SpanLogits, SpanOptions

ENGINE_OF = {name: engine for engine, (name, _) in FORMS.items()}
GATE_SPLITS = tuple(split for split in SPLITS if split != "squad-dev")  # no choice is made on SQuAD dev
DEVELOPMENT = "development"
MAX_F1_LOSS = 0.6  # points
SAMPLE = 64  # questions on which ranges are measured and ways of quantising compared
NEEDED = {"onnxruntime": ("onnx",), "openvino": ("onnx", "nncf")}
TOOLS = {"onnxruntime": ("onnxruntime", "onnx"), "openvino": ("openvino", "nncf", "onnx")}


@dataclass(frozen=True, slots=True)
class Gate:
    """What a form was judged on: a data file by name, hash and split, and the F1 loss in points against float32 with its 95 % interval."""

    data: str
    sha256: str
    split: str
    questions: int
    limit: int | None
    seed: int
    f1: float
    f1_loss: Interval
    max_f1_loss: float

    @property
    def words(self) -> str:
        """For people."""
        loss = self.f1_loss
        return (
            f"F1 loss {loss.value:.2f} points, 95 % interval [{loss.low:.2f}, {loss.high:.2f}], on {self.questions} questions of {self.data} "
            f"({self.split} split{f', a sample with seed {self.seed}' if self.limit else ''})"
        )

    def to_json(self) -> JSON:
        """For the manifest."""
        return asdict(self) | {"f1": round(self.f1, 4), "f1_loss": self.f1_loss.to_json(4)}


@dataclass(frozen=True, slots=True)
class Formed:
    """What was made."""

    folder: str
    form: str
    bytes: int
    gate: Gate
    config: JSON

    @property
    def summary(self) -> str:
        """For people."""
        model = shlex.quote(str(Path(self.folder).parents[1]))
        command = f"pocketqa evaluate {model} --data FILE --engine {self.config['engine']} --precision {INT8}"
        return f"{self.folder}: {self.bytes / 1e6:.1f} MB, {self.config['products']} products of weights in int8\nNext: {command}"

    def to_json(self) -> JSON:
        """For --json."""
        return {"folder": self.folder, "form": self.form, "bytes": self.bytes, **self.config}


class Sample:
    """Some questions with the logits of the folder's own graph, against which forms are compared before they are judged."""

    def __init__(self, model: ModelFolder, examples: Sequence[QAExample], seed: int) -> None:
        chosen = random.Random(seed).sample(list(examples), min(SAMPLE, len(examples)))
        self._tokenizer = Tokenizer(model.tokenizer)
        self._encoded: Encoded = self._tokenizer.encode([Request(e.question, (e.context,)) for e in chosen], evaluation_windows())
        self._exact = self._logits(OnnxRuntime(model))  # (2, tokens)
        self.questions = len(chosen)

    def batches(self) -> list[Batch]:
        """Each window alone."""
        return [batch for batch, _ in make_batches(self._encoded.windows, max_batch=1, pad_id=self._tokenizer.pad_id)]

    def distance(self, runtime: Runtime) -> float:
        """Mean |difference| of the logits of all tokens."""
        return float(np.abs(self._logits(runtime) - self._exact).mean())

    def _logits(self, runtime: Runtime) -> np.ndarray:
        logits: SpanLogits = Reader(self._tokenizer, runtime).forward(self._encoded)  # (W, T)
        real = np.arange(logits.start.shape[1]) < np.array([len(window) for window in self._encoded.windows])[:, None]  # (W, T)
        return np.stack((logits.start[real], logits.end[real]))  # (2, tokens)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `pocketqa package --form`."""
    group = parser.add_argument_group("a form in int8 of the model folder CHECKPOINT, in place of --out")
    add = group.add_argument
    add("--form", choices=tuple(ENGINE_OF), help="kept in CHECKPOINT/forms if it passes its gate")
    add(
        "--data",
        metavar="FILE",
        help="SQuAD-format file (.json, .gz, .bz2, .xz) or Hub NAME[:SPLIT]: the development split that judges it",
    )
    add("--limit", type=int, metavar="N", help="a seeded sample of N questions over the whole file")
    add("--seed", type=int, default=0, help="of the sample (default: %(default)s)")
    add("--split", choices=GATE_SPLITS, default=DEVELOPMENT, help="what the data are (default: %(default)s)")
    limit = "limit in points for the upper end of the F1 loss's 95%% interval, of at least 300 / X questions (default: %(default)s)"
    add("--max-f1-loss", type=float, default=MAX_F1_LOSS, metavar="X", help=limit)


def run(arguments: argparse.Namespace, say: Callable[[str], None]) -> Formed:
    """`make_form` with the options above."""
    given = vars(arguments)
    named = {name: given[name] for name in ("limit", "seed", "split", "max_f1_loss")}
    return make_form(arguments.checkpoint, arguments.form, arguments.data, **named, say=say)


def make_form(
    path: str | Path,
    form: str,
    data: str,
    *,
    limit: int | None = None,
    seed: int = 0,
    split: str = DEVELOPMENT,
    max_f1_loss: float = MAX_F1_LOSS,
    say: Callable[[str], None] = print,
) -> Formed:
    """Quantise a model folder, judge the result and put it at `path`/forms/`form`; an earlier form stays where it fails.

    Raises FolderError and its kinds for the folder, DataError for the data, MissingExtra, EngineError where a product was not quantised, where the
    golden questions are answered otherwise or where the gate is not passed.
    """
    engine = _check(form, split, max_f1_loss)
    model = ModelFolder(Path(path))
    manifest = model.verify()
    if is_squad_dev(data):
        raise OptionsError(f"Expected --data to be a development split, found the questions of SQuAD dev in {data}: choices are not made on it.")
    examples = judged(squad.load(data, limit, seed), manifest.no_answer, say)
    check_questions(len(examples), max_f1_loss)
    place = form_folder(model, engine)
    first = not place.parent.exists()
    try:
        with atomic_folder(place, replace=True) as out:
            say(f"Quantising {model.path} for {form}")
            judge = _Judge(model, manifest, examples)
            failure = ""
            for details in _quantised(engine, model, Sample(model, examples, seed), out, say):
                say(f"Judging it on {len(examples)} questions")
                reader = judge.reader(_open(engine, model, out))
                if wrong := judge.wrong_answers(reader):
                    failure = f"The form {form} of {model.path} was not kept, since it answers otherwise than the model. {wrong}"
                    say(failure)
                    continue
                loss, f1 = judge.loss(reader)
                gate = Gate(Path(data).name, squad.source_hash(data), split, len(examples), limit, seed, f1, loss, max_f1_loss)
                say(gate.words)
                config = {"form": form, "engine": engine, "precision": INT8, "excluded": [], **details, "gate": gate.to_json()}
                if passes_gate(loss, max_f1_loss, len(examples)):
                    break
                failure = _refusal(gate, form, model)
            else:
                raise EngineError(failure)
            _write_manifest(out, engine, manifest, manifest.files[model.weights.name], config)
            size = sum(file.stat().st_size for file in out.iterdir())
    except BaseException:
        if first:
            with contextlib.suppress(OSError):
                place.parent.rmdir()
        raise
    return Formed(str(place), form, size, gate, config)


def _check(form: str, split: str, max_f1_loss: float) -> str:
    """The form's engine.  Raises OptionsError, MissingExtra."""
    problems = []
    if form not in ENGINE_OF:
        problems.append(f"--form must be one of {', '.join(ENGINE_OF)}, found {form!r}")
    if split not in GATE_SPLITS:
        problems.append(f"--split must be one of {', '.join(GATE_SPLITS)}, found {split!r}: choices are not made on SQuAD dev")
    if not 0 < max_f1_loss <= 100:
        problems.append(f"--max-f1-loss must be between 0 and 100 points, found {max_f1_loss:g}")
    if problems:
        raise OptionsError("; ".join(problems))
    engine = ENGINE_OF[form]
    check_installed(f"`pocketqa package --form {form}`", *NEEDED[engine])
    return engine


def _quantised(engine: str, model: ModelFolder, sample: Sample, out: Path, say: Callable[[str], None]) -> Iterator[JSON]:
    """What lies in `out` at each turn: one way of quantising after another, the one to be preferred first."""
    if engine == "openvino":
        from mobile_export.formats.forms_openvino import quantised
    else:
        from mobile_export.formats.forms_onnx import quantised
    for details in quantised(model, sample, out, say):
        yield details | {"sample": sample.questions}


def _open(engine: str, model: ModelFolder, out: Path) -> Runtime:
    graph = out / FORMS[engine][1]
    if engine == "openvino":
        from pocketqa.runtimes.openvino import OpenVinoRuntime

        return OpenVinoRuntime(model, form=graph)
    return OnnxRuntime(model, form=graph)


class _Judge:
    """Some questions, and what the folder's own graph in float32 scores on them."""

    def __init__(self, model: ModelFolder, manifest: Manifest, examples: Sequence[QAExample]) -> None:
        self._model, self._manifest, self._examples = model, manifest, examples
        self._tokenizer = Tokenizer(model.tokenizer)

    def wrong_answers(self, reader: Reader) -> str:
        """The first golden question that is answered otherwise, in words; empty where none is."""
        return next(iter(replay(reader, Golden.load(self._model.golden))), "")

    def loss(self, reader: Reader) -> tuple[Interval, float]:
        """F1 loss in points, and F1."""
        after = self._f1(reader)
        return loss_interval(self._exact, after, squad.groups_of(self._examples)).scaled(100), 100 * float(after.mean())

    @functools.cached_property
    def _exact(self) -> Values:
        return self._f1(self.reader(OnnxRuntime(self._model)))

    def reader(self, runtime: Runtime) -> Reader:
        """Over a form, or the folder's own graph."""
        return Reader(self._tokenizer, runtime, self._manifest.name, no_answer=self._manifest.no_answer)

    def _f1(self, reader: Reader) -> Values:
        """(N,) from 0 to 1."""
        options = SpanOptions(no_answer=reader.no_answer.trained and any(example.is_impossible for example in self._examples))
        return metrics.per_question(predict(reader, self._examples, evaluation_windows(), options, progress=True).texts, self._examples)[1]


def _refusal(gate: Gate, form: str, model: ModelFolder) -> str:
    hint = "A larger sample narrows the interval: leave out --limit." if gate.limit else "Serve the model in another precision."
    return (
        f"The form {form} of {model.path} was not kept: expected the upper end of the interval below {gate.max_f1_loss:g} points, "
        f"found {gate.words}. {hint}"
    )


def _write_manifest(out: Path, engine: str, model: Manifest, parent: str, config: JSON) -> None:
    tools = {"pocketqa": __version__} | {tool: importlib.metadata.version(tool) for tool in TOOLS[engine]}
    write_manifest(out, kind="form", name=model.name, parent=parent, config=config, no_answer=model.no_answer, tools=tools)
