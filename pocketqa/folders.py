"""Model folders as types: which files there are, the manifest with their hashes, and writes that leave all or nothing.

A folder is whole when its manifest is there, because the manifest is written last.  The layout (see `ModelFolder`):

    config.json, model.safetensors, tokenizer.json, tokenizer_config.json, special_tokens_map.json, vocab.txt    what Hugging Face reads
    model.onnx          a graph without weights; it points into model.safetensors
    golden.json         questions with the answers of the exact model, replayed as a service warms up
    README.md           the model card, for people; not hashed, so that it can be edited
    manifest.json       where the model comes from, and the sha256 of every other file
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from fnmatch import fnmatchcase
from pathlib import Path

from pocketqa.errors import CorruptFolder, IncompleteFolder
from pocketqa.types import JSON, NoAnswer
from pocketqa.weights import TensorEntry, check_links, repair_command, safetensors_header
from pocketqa.writes import atomic_folder, write_atomic

__all__ = [
    "FORMAT",
    "Manifest",
    "ModelFolder",
    "NoAnswer",
    "TensorEntry",
    "atomic_folder",
    "file_hashes",
    "safetensors_header",
    "sha256_file",
    "write_atomic",
    "write_manifest",
]

FORMAT = 1
MANIFEST = "manifest.json"
CARD = "README.md"
KINDS = ("model", "checkpoint", "bundle", "form")
REQUIRED = ("config.json", "model.safetensors", "tokenizer.json", "model.onnx", "golden.json", MANIFEST)
TRAINED_FROM = ("config.json", "model*.safetensors*", "tokenizer*.json", "special_tokens_map.json")  # what a training reads of a checkpoint
SHORT_HASH = 12  # hex digits shown to people


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a folder holds and where it comes from.

    parent: sha256 of the weights it was made from; config: resolved settings of the step that made it; commit: of the code, where known;
    files: path relative to the folder -> sha256; tools: package -> version.
    """

    kind: str
    name: str
    parent: str | None = None
    config: JSON = field(default_factory=dict)
    commit: str | None = None
    seed: int | None = None
    no_answer: NoAnswer = field(default_factory=NoAnswer)
    files: dict[str, str] = field(default_factory=dict)
    tools: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT

    def to_json(self) -> JSON:
        """The manifest as it stands in manifest.json."""
        document = asdict(self)
        return {"format": document.pop("format"), **document}

    @classmethod
    def from_json(cls, document: JSON) -> Manifest:
        """Read what `to_json` wrote.  Raises ValueError that says what is wrong."""
        found = document.get("format")
        if found != FORMAT:
            raise ValueError(f"expected a manifest of format {FORMAT}, found {found!r}; a newer PocketQA may read it")
        if unknown := sorted(set(document) - {item.name for item in fields(cls)}):
            raise ValueError(f"unknown entries {', '.join(unknown)}")
        if document.get("kind") not in KINDS:
            raise ValueError(f"kind should be one of {', '.join(KINDS)}, found {document.get('kind')!r}")
        values = dict(document)
        no_answer = values.pop("no_answer", None) or {}
        manifest = cls(**values, no_answer=NoAnswer(bool(no_answer.get("trained", False)), no_answer.get("threshold")))
        problems = [name for name in ("config", "files", "tools") if not isinstance(getattr(manifest, name), dict)]
        if problems or not isinstance(manifest.name, str):
            raise ValueError(f"{', '.join(problems) or 'name'} of another type than expected")
        return manifest


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """The paths of a model folder, and the checks on them."""

    path: Path

    @property
    def config(self) -> Path:
        """Hugging Face's description of the architecture."""
        return self.path / "config.json"

    @property
    def weights(self) -> Path:
        """The one copy of the weights."""
        return self.path / "model.safetensors"

    @property
    def graph(self) -> Path:
        """The ONNX graph that points into the weights."""
        return self.path / "model.onnx"

    @property
    def tokenizer(self) -> Path:
        """The fast tokenizer."""
        return self.path / "tokenizer.json"

    @property
    def golden(self) -> Path:
        """Golden questions (pocketqa.golden)."""
        return self.path / "golden.json"

    @property
    def manifest(self) -> Path:
        """The manifest, written last."""
        return self.path / MANIFEST

    @property
    def card(self) -> Path:
        """The model card."""
        return self.path / CARD

    def missing(self) -> list[str]:
        """Names of the files without which the folder cannot be served."""
        return [name for name in REQUIRED if not (self.path / name).is_file()]

    def read_manifest(self, remedy: str = "") -> Manifest:
        """The manifest.  Raises IncompleteFolder where there is none, CorruptFolder where it cannot be read.

        remedy: what to do about one that cannot be read, where the folder is no model folder.
        """
        if not self.manifest.is_file():
            raise IncompleteFolder(f"Expected a manifest at {self.manifest}, found none: the folder was never finished. {self._remedy([MANIFEST])}")
        try:
            return Manifest.from_json(json.loads(self.manifest.read_bytes()))
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise CorruptFolder(f"Expected a readable manifest at {self.manifest}, found: {error}. {remedy or self._remedy([])}") from None

    def check(self) -> Manifest:
        """The manifest of a folder that has all its files.  Raises IncompleteFolder that lists what is missing and how to make it."""
        if (found := not_a_folder(self.path)) is not None:
            raise IncompleteFolder(
                f"Expected a model folder at {self.path}, found {found}. Make one with: pocketqa package CHECKPOINT --out {self._quoted}"
            )
        with _readable(self.path):
            if missing := self.missing():
                raise IncompleteFolder(f"{self.path} is not a whole model folder: {', '.join(missing)} missing. {self._remedy(missing)}")
            return self.read_manifest()

    def check_graph(self) -> None:
        """Raises StaleGraph where model.onnx no longer points at the right places of model.safetensors."""
        check_links(self.graph, self.weights)

    def verify(self) -> Manifest:
        """Check, compare graph with weights, then every file with its sha256.  Raises FolderError; one flipped byte is enough."""
        manifest = self.check()
        self.check_graph()
        for required in REQUIRED:
            if required != MANIFEST and required not in manifest.files:
                raise CorruptFolder(f"Expected {self.manifest} to hold the sha256 of {required}, found none. {self._remedy([])}")
        for name, expected in manifest.files.items():
            file = self.path / name
            if not file.is_file():
                raise IncompleteFolder(f"{self.path} is not a whole model folder: {name} missing. {self._remedy([name])}")
            _check_hash(file, expected, "packaged", f"; or, if the change is meant, {self._again}")
        return manifest

    def verify_checkpoint(self) -> None:
        """Compare what a training reads of a checkpoint with its manifest; a folder without one, as other programs leave, is taken as it is.

        Raises CorruptFolder; one flipped byte of configuration, weights or tokenizer is enough.
        """
        if not self.manifest.is_file():
            return
        for name, expected in self.read_manifest().files.items():
            if any(fnmatchcase(name, pattern) for pattern in TRAINED_FROM) and (self.path / name).is_file():
                _check_hash(self.path / name, expected, "saved", ", or train it again.")

    @property
    def _quoted(self) -> str:
        return shlex.quote(str(self.path))

    @property
    def _again(self) -> str:
        return f"make the folder again with: {repair_command(self.path)}"

    def _remedy(self, missing: list[str]) -> str:
        if self.config.is_file() and self.weights.is_file() and not self.graph.is_file():  # a checkpoint: leave it as it is
            return f"If it is a checkpoint, make a model folder from it with: pocketqa package {self._quoted} --out DIR"
        if self.config.is_file() and self.weights.is_file() and "tokenizer.json" not in missing:
            return self._again[0].upper() + self._again[1:]
        return f"Copy it again from where it came from, or make it with: pocketqa package CHECKPOINT --out {self._quoted} --force"


def not_a_folder(path: Path) -> str | None:
    """What is found in place of a folder, in words; None where there is one."""
    try:
        return None if path.is_dir() else "a file" if path.exists() else "nothing"
    except OSError as error:
        return f"that it cannot be read ({error.strerror})"


@contextlib.contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """Raises CorruptFolder where the system does not let a file be read."""
    try:
        yield
    except OSError as error:
        problem = f"{error.filename} cannot be read: {error.strerror}"
        raise CorruptFolder(f"Expected to read all of {folder}, but {problem}. See who may read it, or copy the folder again.") from None


def sha256_file(path: Path) -> str:
    """The sha256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_hash(file: Path, expected: str, made: str, otherwise: str) -> None:
    """Raise CorruptFolder where a file is not what was `made`; otherwise: what to do but to copy it again."""
    with _readable(file.parent):
        found = sha256_file(file)
    if found != expected:
        raise CorruptFolder(
            f"{file} differs from what was {made}: expected sha256 {expected[:SHORT_HASH]}..., found {found[:SHORT_HASH]}.... "
            f"Copy the folder again from where it came from{otherwise}"
        )


def file_hashes(folder: Path) -> dict[str, str]:
    """Path relative to the folder -> sha256 for every file but the manifest and the card."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path: path.relative_to(folder).as_posix() for path in files}
    return {name: sha256_file(path) for path, name in names.items() if name not in (MANIFEST, CARD)}


def write_manifest(
    folder: str | Path,
    *,
    kind: str,
    name: str,
    parent: str | None = None,
    config: JSON | None = None,
    commit: str | None = None,
    seed: int | None = None,
    no_answer: NoAnswer | None = None,
    tools: Mapping[str, str] | None = None,
) -> Manifest:
    """Hash the files of a finished folder and write manifest.json, last and in one step."""
    manifest = Manifest(
        kind=kind,
        name=name,
        parent=parent,
        config=config or {},
        commit=commit,
        seed=seed,
        no_answer=no_answer or NoAnswer(),
        files=file_hashes(Path(folder)),
        tools=dict(tools or {}),
    )
    write_atomic(Path(folder) / MANIFEST, json.dumps(manifest.to_json(), indent=1, ensure_ascii=False) + "\n")
    return manifest
