"""`pocketqa verify BUNDLE [BUNDLE ...]`: run what was exported, on any machine, and compare it with the model it was made from.

pocketqa verify bundles/student-ios16
pocketqa verify bundles/student-*  --data dev-v1.1.json --reference models/student --split squad-dev --run-file runs
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mobile_export.formats.coreml_runtime import UNITS
from mobile_export.targets import DEFAULT_LAYOUT, NETWORK
from mobile_export.verification.artefact import ENGINES
from mobile_export.verification.comparison import GATES
from mobile_export.verification.verify_text import block, overview
from pocketqa import runs, squad
from pocketqa.arguments import verb_parser
from pocketqa.errors import OptionsError, VocabularyMismatch
from pocketqa.evaluation import judged, open_reader
from pocketqa.features import Tokenizer
from pocketqa.folders import ModelFolder
from pocketqa.reader import Reader
from pocketqa.runtimes import Runtime, usable_cores
from pocketqa.runtimes.cached import default_folder
from pocketqa.types import JSON, NoAnswer, QAExample, RuntimeInfo, WindowOptions

if TYPE_CHECKING:
    from mobile_export.bundle import Bundle
    from pocketqa.evaluation import Measured

BROKEN = 1  # exit status: something is wrong with a bundle, or a gate failed
LISTED = 200  # differing questions kept in a run file
REFERENCE_ENGINES = ("pytorch", "onnxruntime")
EPILOG = """\
Without --data: the golden vectors of the bundle, what its operations compute beside the trace of the export, hazards of
float16 on a phone, values that are not finite. Takes well below a minute.

With --data: the artefact answers the questions; exact match and F1 with 95 % intervals.
With --reference: the model that the bundle was made from answers them too (in this process, in float32); differences of
scores with paired intervals, of spans and of logits, and the gate: the upper end of the interval of the F1 loss must lie
below --max-f1-loss (default: {gates}), on at least 300 / max-f1-loss questions (1,000 for 0.3,
which pass only where nothing at all is lost: take three times as many, or the whole file).
Questions longer than the bundle's Swift takes are left out.

The artefact runs in a process of its own that is given the bundle and token ids and nothing else. Logits are kept below
$XDG_CACHE_HOME/pocketqa, so that an interrupted run goes on where it stopped.

Exit status: 0 sound, 1 something is wrong or a gate failed, 2 the command could not be carried out.

examples:
  pocketqa verify bundles/student-ios16
  pocketqa verify bundles/student-ios16 --data dev-v1.1.json --limit 3000 --reference models/student
  pocketqa verify bundles/* --data dev-v1.1.json --split squad-dev --reference models/student --run-file runs
"""


def main(argv: list[str]) -> int:
    """Run the verb; returns the exit status.  Raises PocketQAError."""
    given = _parser().parse_args(argv)
    _check(given)
    runs.check_target(given.run_file)

    from mobile_export.bundle import open_bundle
    from mobile_export.verification.artefact import engine_for
    from mobile_export.verification.verification import asked_in_app, verify_bundle

    bundles = [open_bundle(path) for path in given.bundles]
    for bundle in bundles:
        engine_for(bundle, given.engine)  # raises before any work is done
    examples = squad.load(given.data, given.limit, given.seed) if given.data else []
    if examples:  # the same ones for all bundles, whose answers are shown side by side
        able = all(bundle.no_answer.trained for bundle in bundles)
        examples = judged(examples, NoAnswer(able), _progress)
    for bundle in bundles if examples else []:
        examples = asked_in_app(examples, bundle, _progress)
    cache = None if given.no_cache else Path(given.cache or default_folder())
    reference = Reference(given, bundles, examples, cache) if given.reference else None
    reports = []
    for bundle in bundles:
        _progress(f"{bundle.path}: {bundle.name}, {bundle.target.name} {bundle.scheme}")
        report = verify_bundle(
            bundle,
            examples=examples,
            reference=reference,
            max_f1_loss=given.max_f1_loss,
            engine=given.engine,
            threads=given.threads,
            unit=given.compute_unit or ("cpu" if bundle.manifest.config["format"] == NETWORK.format else "all"),
            cache=cache,
            progress=True,
        )
        reports.append({"bundle": bundle.path.name, **report})
        if given.run_file and report["results"]:
            run = _run(bundle, report, given, argv, reference)
            _progress(f"run file: {runs.write(run, given.run_file)}")
        if not given.json:
            print(block(reports[-1]), flush=True)
    if given.json:
        print(json.dumps({"bundles": reports, "passed": all(report["passed"] for report in reports)}))
    elif len(reports) > 1:
        print(overview(reports))
    return 0 if all(report["passed"] for report in reports) else BROKEN


class Reference:
    """The model that the bundles were made from; answers the examples once for each way of cutting windows."""

    def __init__(self, given: argparse.Namespace, bundles: Sequence[Bundle], examples: Sequence[QAExample], cache: Path | None) -> None:
        """Open it.  Raises what opening a model raises, OptionsError where a bundle was made from another model, VocabularyMismatch."""
        self._reader = _reference_reader(given, next((b.no_answer for b in bundles if b.no_answer.trained), None))
        self._examples, self._cache = examples, cache
        self._measured: dict[WindowOptions, Measured] = {}
        # MobileBERT mixes the last [SEP] with what follows it, which is [PAD] in a bundle and nothing without padding.
        self._lengths = {bundle.window: bundle.lengths for bundle in bundles if bundle.manifest.config["model_type"] == "mobilebert"}
        others = [bundle.path.name for bundle in bundles if bundle.model_hash != self._reader.model_hash]
        if others:
            raise OptionsError(
                f"Expected --reference to be the model that the bundles were made from; {', '.join(others)} were made from another one "
                f"(sha256 of its weights {self._reader.model_hash[:12]}...). Name the folder that they were exported from."
            )
        for bundle in bundles:
            if Tokenizer(bundle.tokenizer).vocabulary_hash != self._reader.tokenizer.vocabulary_hash:
                raise VocabularyMismatch(f"{bundle.path} and {given.reference} cut text into different tokens, so their logits cannot be compared.")

    @property
    def info(self) -> RuntimeInfo:
        """Its engine."""
        return self._reader.info

    def __call__(self, window: WindowOptions) -> Measured:
        """Its answers with these windows."""
        from mobile_export.verification.verification import measure_with

        if window not in self._measured:
            reader = self._reader
            if lengths := self._lengths.get(window):
                reader = Reader(reader.tokenizer, _Padded(reader.runtime, lengths), reader.name, reader.model_hash, reader.no_answer)
            self._measured[window] = measure_with(reader, window, self._examples, (reader.model_hash,), self._cache, progress=True)
        return self._measured[window]


class _Padded:
    """A runtime whose windows are padded to the lengths of a bundle."""

    def __init__(self, runtime: Runtime, lengths: tuple[int, ...]) -> None:
        self.info, self.max_batch, self.forward = runtime.info, runtime.max_batch, runtime.forward
        self.lengths: tuple[int, ...] | None = lengths


def _reference_reader(given: argparse.Namespace, no_answer: NoAnswer | None) -> Reader:
    """A packaged folder in any engine; else whatever `export` takes, in PyTorch.  no_answer: what the export was told of that."""
    if ModelFolder(Path(given.reference)).graph.is_file() or given.reference_engine != "pytorch":
        return open_reader(given.reference, given.reference_engine, "fp32", given.threads)

    import torch

    from mobile_export.checkpoint.checkpoints import open_checkpoint
    from mobile_export.formats.exporting import tokenizer_of
    from pocketqa.runtimes.pytorch import PyTorchRuntime

    torch.set_num_threads(given.threads or min(torch.get_num_threads(), usable_cores()))
    checkpoint = open_checkpoint(given.reference, no_answer)
    runtime = PyTorchRuntime(checkpoint.model)
    with tempfile.TemporaryDirectory(prefix="pocketqa-verify-") as workshop:
        (file := Path(workshop) / "tokenizer.json").write_bytes(tokenizer_of(checkpoint))
        return Reader(Tokenizer(file), runtime, checkpoint.name, checkpoint.sha256, checkpoint.no_answer or NoAnswer())


def _run(bundle: Bundle, report: JSON, given: argparse.Namespace, argv: Sequence[str], reference: Reference | None) -> runs.RunFile:
    results = report["results"] | {"limit": given.limit, "seed": given.seed, "window": asdict(bundle.window)}
    if agreement := results["agreement"]:
        closest = [{"id": question["id"], "gap": question["gap"]} for question in agreement["differing"][:LISTED]]
        results["agreement"] = agreement | {"differing": closest, "reference": asdict(reference.info) if reference else None}
    info = replace(RuntimeInfo(**report["engine"]), precision=bundle.scheme)
    subject = runs.Subject.of(bundle.name, given.role or bundle.name, bundle.model_hash, info)
    data = runs.DataFile(Path(given.data).name, squad.source_hash(given.data), results["count"], given.split)
    layout = [bundle.layout] if bundle.layout != DEFAULT_LAYOUT else []
    name = " ".join([given.split, bundle.name, bundle.target.name, bundle.scheme, *layout, info.engine])
    return runs.new_run("verification", name, [subject], [data], ["pocketqa", "verify", *argv], results, report["not_checked"])


def _check(given: argparse.Namespace) -> None:
    """Options that contradict each other, all at once.  Raises OptionsError."""
    problems = []
    for option in ("limit", "reference", "run_file"):
        if getattr(given, option) is not None and given.data is None:
            problems.append(f"--{option.replace('_', '-')} needs --data")
    if given.max_f1_loss is not None:
        if given.reference is None:
            problems.append("--max-f1-loss needs --reference, which says what was lost")
        if not given.max_f1_loss > 0:
            problems.append(f"--max-f1-loss must be above 0 percent points, found {given.max_f1_loss:g}")
    if given.threads is not None and given.threads < 1:
        problems.append(f"--threads must be at least 1, found {given.threads}")
    if given.compute_unit and given.engine != "coreml":
        problems.append("--compute-unit needs --engine coreml")
    if given.run_file and given.run_file.endswith(".json") and len(given.bundles) > 1:
        problems.append("--run-file must be a folder where several bundles are verified, so that each gets a file of its own")
    if problems:
        raise OptionsError("; ".join(problems) + ".")


def _parser() -> argparse.ArgumentParser:
    gates = ", ".join(f"{scheme} {limit:g}" for scheme, limit in GATES.items())
    parser = verb_parser(
        "pocketqa verify",
        "Run exported bundles on any machine and compare them with the model they were made from.",
        EPILOG.format(gates=gates),
    )
    add = parser.add_argument
    add("bundles", nargs="+", metavar="BUNDLE", help="folder made by `pocketqa export` or `pocketqa compress`")
    add(
        "--data",
        metavar="FILE",
        help="SQuAD-format file (.json, .gz, .bz2, .xz) or Hub NAME[:SPLIT] whose questions are put to the artefact",
    )
    add("--limit", type=int, metavar="N", help="a seeded sample of N questions over the whole file")
    add("--seed", type=int, default=0, metavar="S", help="of the sample (default 0)")
    add("--split", choices=runs.SPLITS, default="other", help="what the data are, for the run file (default other)")
    add("--reference", metavar="MODEL", help="model folder or checkpoint that the bundle was made from")
    add("--reference-engine", choices=REFERENCE_ENGINES, default="pytorch", help="what runs it, in float32 (default pytorch; onnxruntime is quicker)")
    add("--max-f1-loss", type=float, metavar="X", help=f"the gate, in percent points (default {gates}; other schemes have none)")
    add("--engine", choices=ENGINES, help="default: the interpreter, for an ExecuTorch bundle ExecuTorch; coreml needs a Mac")
    add("--compute-unit", choices=tuple(UNITS), help="of Core ML (default: all; cpu for a .mlmodel, whose ids other units may round)")
    add("--threads", type=int, metavar="N", help="default: all usable cores")
    add("--cache", metavar="DIR", help="where logits are kept (default: below $XDG_CACHE_HOME/pocketqa)")
    add("--no-cache", action="store_true", help="keep no logits, use none")
    add("--run-file", metavar="PATH", help="write a run file to this folder or .json path")
    add("--role", help="teacher, student, ..., for the run file (default: the model's name)")
    add("--json", action="store_true", help="one JSON document on standard output (progress goes to standard error)")
    return parser


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
