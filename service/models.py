"""The two models behind the service: opened, checked against one another, replayed and described."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pocketqa.errors import EngineError, IncompleteFolder, VocabularyMismatch
from pocketqa.folders import ModelFolder, safetensors_header
from pocketqa.golden import Golden, replay
from pocketqa.reader import Reader
from pocketqa.weights import repair_command
from service.schemas import ModelInfo, NoAnswerSupport, Role
from service.settings import Settings

SAFEST_ENGINE = "onnxruntime"  # fp32, and in every install

log = logging.getLogger("pocketqa.service")


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a model's folder tells of its size; None where there is no folder."""

    layers: int | None = None
    hidden_size: int | None = None
    parameters: int | None = None
    weights_bytes: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Served:
    """One model, ready to answer."""

    role: Role
    reader: Reader
    facts: ModelFacts = ModelFacts()

    @property
    def title(self) -> str:
        """Role and name, said once where they are the same."""
        return self.role if self.reader.name == self.role else f"{self.role} {self.reader.name}"

    @property
    def info(self) -> ModelInfo:
        """Its description for GET /v1/models."""
        runtime, no_answer = self.reader.info, self.reader.no_answer
        return ModelInfo(
            name=self.reader.name,
            role=self.role,
            engine=runtime.engine,
            engine_version=runtime.version,
            precision=runtime.precision,
            threads=runtime.threads,
            layers=self.facts.layers,
            hidden_size=self.facts.hidden_size,
            parameters=self.facts.parameters,
            weights_bytes=self.facts.weights_bytes,
            weights_sha256=self.reader.model_hash,
            no_answer=NoAnswerSupport(supported=no_answer.trained, threshold=no_answer.threshold),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """Teacher and student, which read the same windows and so must share a vocabulary."""

    teacher: Served
    student: Served

    def __post_init__(self) -> None:
        """Raises VocabularyMismatch."""
        hashes = [served.reader.tokenizer.vocabulary_hash for served in (self.teacher, self.student)]
        if hashes[0] != hashes[1]:
            raise VocabularyMismatch(
                f"Expected a teacher and a student with one vocabulary, found {hashes[0][:12]} in {self.teacher.reader.name!r} and "
                f"{hashes[1][:12]} in {self.student.reader.name!r}: their windows would differ. Name a pair that was distilled together: "
                "pocketqa serve --teacher DIR --student DIR"
            )

    def __getitem__(self, role: Role) -> Served:
        """The model in this role."""
        return self.teacher if role == "teacher" else self.student


def open_pair(settings: Settings) -> Pair:
    """Both models, verified against their manifests and replayed on their golden questions.  Raises FolderError, EngineError, VocabularyMismatch."""
    check_folders(settings)
    return Pair(open_model("teacher", settings.teacher, settings), open_model("student", settings.student, settings))


def check_folders(settings: Settings) -> None:
    """Raises IncompleteFolder where a folder is not there at all."""
    folders: dict[Role, Path] = {"teacher": settings.teacher, "student": settings.student}
    if missing := [f"a {role} at {path}" for role, path in folders.items() if not path.is_dir()]:
        raise IncompleteFolder(
            f"Expected {' and '.join(missing)}, found no such folder. Name two model folders made by `pocketqa package`: "
            "pocketqa serve --teacher DIR --student DIR (or set POCKETQA_TEACHER and POCKETQA_STUDENT)."
        )


def open_model(role: Role, path: Path, settings: Settings) -> Served:
    """One model, its files compared with their hashes and its engine with the golden questions, which warm it as well.

    An engine that "auto" picked and that answers otherwise than the packaged model is replaced by ONNX Runtime, aloud.
    Raises FolderError; EngineError where the engine or precision that was asked for, or ONNX Runtime itself, answers otherwise.
    """
    folder = ModelFolder(path)
    reader = Reader.open(path, engine=settings.engine, threads=settings.threads, precision=settings.precision)
    golden = Golden.load(folder.golden)
    if problems := replay(reader, golden):
        info = reader.info
        if settings.engine != "auto" or settings.precision is not None or (info.engine, info.precision) == (SAFEST_ENGINE, "fp32"):
            raise EngineError(
                f"The {role} at {path} answers otherwise on {info.engine} {info.precision} than when it was packaged. {problems[0]} "
                f"Name another engine with --engine, or make the folder again with: {repair_command(path)}"
            )
        log.warning("The %s falls back from %s %s to %s fp32: %s", role, info.engine, info.precision, SAFEST_ENGINE, problems[0])
        return open_model(role, path, replace(settings, engine=SAFEST_ENGINE, precision=None))
    return Served(role, reader, read_facts(folder))


def read_facts(folder: ModelFolder) -> ModelFacts:
    """Sizes from config.json and from the header of the weights, without reading them."""
    config: Mapping[str, Any] = json.loads(folder.config.read_text("utf-8"))
    return ModelFacts(
        layers=config.get("num_hidden_layers", config.get("n_layers")),
        hidden_size=config.get("hidden_size", config.get("dim")),
        parameters=sum(math.prod(tensor.shape) for tensor in safetensors_header(folder.weights).values()),
        weights_bytes=folder.weights.stat().st_size,
    )
