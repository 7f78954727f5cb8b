"""Contestants of a benchmark: a model folder or a bundle, in an engine with so many threads."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pocketqa.errors import EngineError, OptionsError
from pocketqa.folders import ModelFolder, sha256_file
from pocketqa.runs import Subject
from pocketqa.runtimes import ENGINES, available_engines
from pocketqa.runtimes.forms import FORMS, INT8, find_form
from pocketqa.types import RuntimeInfo

FP32 = "fp32"
BUNDLE_ENGINES = {"executorch": "executorch", "mlprogram": "coreml", "neuralnetwork": "coreml"}  # format of a bundle -> what runs it
ENGINE_NAMES = (*ENGINES, "executorch", "coreml")
WEIGHTS, CONFIGURATION = "weights", "configuration"  # where the values of the parameters come from


@dataclass(frozen=True, slots=True)
class Contestant:
    """A model folder or a bundle, in one engine with so many threads.

    name: of the model; role: "teacher", "student", ...; precision: asked for (the process reports what it computes in); lengths: fixed window
    lengths that it takes, None for any; origin: WEIGHTS or CONFIGURATION (seeded random values: latency and size do not depend on them);
    zeros: given so many ids 0 in place of every query, which reproduces a published measurement; unit: of Core ML, which decides on its threads
    itself; "" for every other engine.
    """

    name: str
    path: Path
    engine: str
    precision: str
    threads: int
    sha256: str
    role: str = ""
    form: str = "model"  # or "bundle"
    lengths: tuple[int, ...] | None = None
    origin: str = WEIGHTS
    zeros: int = 0
    unit: str = ""

    @property
    def label(self) -> str:
        """ "student, onnxruntime fp32": unique among the contestants of one race, which all have the same number of threads."""
        return f"{self.name}, {self.engine}{self.unit and f'-{self.unit}'} {self.precision}"

    @property
    def tokenizer(self) -> Path:
        """The fast tokenizer."""
        return self.path / "tokenizer.json"

    def subject(self, info: RuntimeInfo) -> Subject:
        """What a run file says of it."""
        return Subject.of(self.name, self.role or self.name, self.sha256, info)

    def files(self) -> list[Path]:
        """Every file of its folder, which a cold start has to fetch."""
        return sorted(file for file in self.path.rglob("*") if file.is_file())


def parse_engine(text: str) -> tuple[str, str]:
    """ "openvino:bf16" -> ("openvino", "bf16"); the precision is fp32 where none is named.  Raises OptionsError."""
    engine, _, precision = text.partition(":")
    if engine not in ENGINE_NAMES:
        raise OptionsError(f"Expected engines out of {', '.join(ENGINE_NAMES)}, each with or without a precision (openvino:bf16), found {text!r}.")
    return engine, precision or FP32


def model_contestant(folder: str | Path, engine: str, threads: int, *, name: str = "", role: str = "") -> Contestant:
    """A model folder in an engine ("onnxruntime", "openvino:bf16", "onnxruntime:int8").  Raises FolderError, OptionsError, EngineError."""
    model = ModelFolder(Path(folder))
    manifest = model.verify()
    named, precision = parse_engine(engine)
    if named not in available_engines():
        raise EngineError(f"The engine {named} is not installed. Install it, or name others with --engines.")
    if precision == INT8 and named in FORMS:
        find_form(model, named)  # compares its hashes, which the process of the contestant then leaves out
    return Contestant(name or manifest.name, model.path, named, precision, threads, manifest.files[model.weights.name], role)


def folder_contestant(folder: str | Path, engine: str, threads: int, *, name: str, role: str = "", origin: str = CONFIGURATION) -> Contestant:
    """A folder made from a configuration (geometry.make_folder), which has no manifest to verify."""
    model = ModelFolder(Path(folder))
    named, precision = parse_engine(engine)
    return Contestant(name, model.path, named, precision, threads, sha256_file(model.weights), role, origin=origin)


def bundle_contestant(folder: str | Path, threads: int, *, name: str = "", role: str = "", unit: str = "cpu") -> Contestant:
    """A bundle in the engine that runs its format; unit: where that is Core ML.  Raises FolderError."""
    from mobile_export.bundle import open_bundle

    bundle = open_bundle(Path(folder))
    engine = BUNDLE_ENGINES[str(bundle.manifest.config["format"])]
    made = Contestant(name or bundle.name, bundle.path, engine, bundle.scheme, threads, bundle.model_hash, role, "bundle", tuple(bundle.lengths))
    return replace(made, unit=unit) if engine == "coreml" else made


def told_apart(contestants: Sequence[Contestant]) -> list[Contestant]:
    """Contestants with names of their own: those of one label add the shortest end of their paths that differs."""
    labels = [contestant.label for contestant in contestants]

    def named(contestant: Contestant) -> Contestant:
        alike = [c.path.resolve().parts for c in contestants if c.label == contestant.label]
        if labels.count(contestant.label) == 1:
            return contestant
        own = contestant.path.resolve().parts
        enough = next((n for n in range(1, len(own)) if sum(parts[-n:] == own[-n:] for parts in alike) == 1), 1)
        return replace(contestant, name=f"{contestant.name} ({'/'.join(own[-enough:])})")

    return [named(contestant) for contestant in contestants]


def runs_here(contestant: Contestant) -> bool:
    """Whether this system has the contestant's engine at all: Core ML computes on a Mac only."""
    return contestant.engine != "coreml" or sys.platform == "darwin"
