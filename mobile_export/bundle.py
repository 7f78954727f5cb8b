"""Bundles: what an app needs of a model, in one folder, whole when its manifest is there.

    bundle = open_bundle("bundles/student-ios16")
    bundle.package, bundle.target.name, bundle.scheme, bundle.lengths, bundle.window

    Student.mlpackage | Student.mlmodel | Student.pte    the model
    vocab.txt, tokenizer.json                             its vocabulary, for the app and for this library
    golden.json                                           questions with ids, logits and answers, for the app's tests
    trace.json                                            a digest of what each operation computes, for `pocketqa verify` (not of a .pte)
    QuestionAnswering.swift, HOWTO.md                     the code that loads it, and how to use it
    Timing.swift                                          for a test that times it on a phone
    manifest.json                                         target, scheme, lengths, the checkpoint's hash, the sha256 of every other file

Nothing in it depends on when or where it was made.  A model in the older `neuralnetwork` type has two more: `program/`, the operations of the
ML program that it was made from, and `weights.json`, which layer holds which of its constants.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mobile_export.formats.howto import HOWTO, SWIFT, write_howto
from mobile_export.targets import EXECUTORCH, Target, check_layout, check_scheme, find_target
from mobile_export.timing.archive import model_files, zipped_bytes
from mobile_export.tools import import_coremltools
from pocketqa.errors import CorruptFolder, EngineError, FolderError, IncompleteFolder, OptionsError
from pocketqa.folders import Manifest, ModelFolder, atomic_folder, sha256_file, write_manifest
from pocketqa.types import JSON, NoAnswer, WindowOptions

KIND = "bundle"
SPECIFICATION = Path("Data/com.apple.CoreML/model.mlmodel")  # of a package, relative to it
VOCABULARY, TOKENIZER, GOLDEN = "vocab.txt", "tokenizer.json", "golden.json"
TRACE = "trace.json"
SHARED = (VOCABULARY, TOKENIZER, GOLDEN)  # what the bundles of one checkpoint have in common
CONFIG = ("target", "scheme", "layout", "format", "lengths", "package", "model_type", "specification", "window", "compression")

TAKEN = (
    "Answer QuestionError SpanModel ReaderSettings WordPieceTokenizer QuestionWindow QuestionReader CoreMLSpanModel GoldenVectors "  # of our Swift
    "TimedBundle TimingMode Timed Sample Chance TimingTests "
    "Questions QuestionAnsweringTests ExecuTorchSpanModel Module Tensor Value "  # of HOWTO.md and ExecuTorch
    "Int8 Int16 Int32 Int64 UInt UInt8 UInt16 UInt32 UInt64 Float16 Float32 Float64 URL UUID "
    "Any Array Bool Character Dictionary Double Error Float Int Never Optional Range Result Self Sequence Set String Substring Task Type "
    "Bundle Calendar Data Date Decimal Formatter Host Locale Measurement Notification Operation Port Process Progress Scanner Stream Thread Timer "
    "Unit Foundation App Button Color Font Form Image Label Link List Path Picker Scene Section State Table Text View"
)
"""Types of Swift, Foundation and SwiftUI, and of a bundle's own code: a model's class of the same name would not compile, or hide them."""

MakePackage = Callable[[Path], None]
"""Writes the model to the path it is given, and may write more files beside it."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle that was found whole by `open_bundle`."""

    path: Path
    manifest: Manifest

    @property
    def package(self) -> Path:
        """The model: a folder (.mlpackage) or a file (.mlmodel, .pte)."""
        return self.path / str(self.manifest.config["package"])

    @property
    def vocabulary(self) -> Path:
        """One WordPiece a line."""
        return self.path / VOCABULARY

    @property
    def tokenizer(self) -> Path:
        """The fast tokenizer of the same vocabulary."""
        return self.path / TOKENIZER

    @property
    def golden(self) -> Path:
        """Golden vectors (`mobile_export.formats.vectors`)."""
        return self.path / GOLDEN

    @property
    def target(self) -> Target:
        """The oldest system that loads it."""
        return find_target(self.manifest.config["target"])

    @property
    def scheme(self) -> str:
        """How its weights are stored."""
        return str(self.manifest.config["scheme"])

    @property
    def layout(self) -> str:
        """Arrangement of its tensors: standard or ane."""
        return str(self.manifest.config["layout"])

    @property
    def format(self) -> str:
        """mlprogram, neuralnetwork or executorch."""
        return str(self.manifest.config["format"])

    @property
    def lengths(self) -> tuple[int, ...]:
        """Window lengths that it takes, ascending."""
        return tuple(self.manifest.config["lengths"])

    @property
    def window(self) -> WindowOptions:
        """How passages are cut for it."""
        return WindowOptions(**self.manifest.config["window"])

    @property
    def name(self) -> str:
        """Of the checkpoint."""
        return self.manifest.name

    @property
    def model_hash(self) -> str:
        """sha256 of the checkpoint's weights."""
        return self.manifest.parent or ""

    @property
    def no_answer(self) -> NoAnswer:
        """Whether the checkpoint was trained with unanswerable questions."""
        return self.manifest.no_answer


def open_bundle(path: str | Path) -> Bundle:
    """Open a bundle and compare every file with its sha256.  Raises IncompleteFolder, CorruptFolder with the command that makes it again."""
    folder = Path(path)
    if not folder.is_dir() or folder.suffix == ".mlpackage":
        found = "a bare package" if folder.suffix == ".mlpackage" and folder.exists() else "a file" if folder.exists() else "nothing"
        raise IncompleteFolder(f"Expected a bundle at {folder}, found {found}. Make one with: {_export_command(folder)}")
    if not (folder / "manifest.json").is_file():
        raise IncompleteFolder(f"Expected a bundle at {folder}, found no manifest.json in it. Make one with: {_export_command(folder)}")
    manifest = ModelFolder(folder).read_manifest(_again(folder, "TARGET"))
    if manifest.kind != KIND:
        raise FolderError(
            f"Expected a bundle at {folder}, found a {manifest.kind}. Make a bundle from it with: "
            f"pocketqa export {shlex.quote(str(folder))} --target ios16 --out DIR"
        )
    bundle = Bundle(folder, manifest)
    _check_config(bundle)
    _check_files(bundle)
    return bundle


def check_out(path: Path, replace: bool) -> None:
    """Before any work: refuse what would be refused at its end, and never replace a folder that is no bundle.  Raises FolderError."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not path.is_dir():
        raise FolderError(f"Expected to write a bundle folder at {path}, found a file. Choose another --out.")
    if not replace:
        raise FolderError(f"Expected nothing at {path}, found a folder that is not empty. Choose another --out, or add --force to replace it.")
    if not holds_bundle(path):
        raise FolderError(f"{path} holds something else than a bundle, so --force does not replace it. Choose another --out, or remove the folder.")


def holds_bundle(folder: Path) -> bool:
    """Whether a folder is a bundle by its manifest or, where that is missing or damaged, by the files that only bundles have together."""
    try:
        return ModelFolder(folder).read_manifest().kind == KIND
    except FolderError:
        return all((folder / name).is_file() for name in (*SHARED, HOWTO, SWIFT))


def write_bundle(
    path: Path,
    make_package: MakePackage,
    make_rest: Callable[[Path], None],
    *,
    name: str,
    parent: str,
    no_answer: NoAnswer | None,
    config: JSON,
    tools: dict[str, str],
    replace: bool = False,
) -> Bundle:
    """Write a bundle whole or not at all.  `make_rest` is given the folder and writes the files of SHARED into it.

    config: as in CONFIG, but for the specification version, which is read from the model.
    Raises FolderError where `path` is taken, EngineError where the target would not load the model, and what the two functions raise.
    """
    check_out(path, replace)
    with atomic_folder(path, replace) as folder:
        package = folder / config["package"]
        make_package(package)
        config = config | {"specification": _specification(package, find_target(config["target"]))}
        make_rest(folder)
        write_howto(folder, name, parent, bool(no_answer and no_answer.trained), config, tools)
        _write_trace(Bundle(folder, Manifest(KIND, name, config=config)))
        manifest = write_manifest(folder, kind=KIND, name=name, parent=parent, no_answer=no_answer, config=config, tools=tools)
        _check_config(Bundle(folder, manifest))
    return Bundle(path, manifest)


def derive_bundle(
    parent: Bundle, path: Path, make_package: MakePackage, *, scheme: str, compression: JSON, replace: bool = False, suffix: str | None = None
) -> Bundle:
    """A bundle with another model of the same checkpoint, target, lengths and layout: vocabulary and golden vectors are the parent's.

    compression: what was done, for the manifest; suffix: of the model, where it differs from the scheme's own.
    Raises OptionsError where the target does not take the scheme, FolderError where `path` is taken.
    """
    form = check_scheme(parent.target, scheme)
    check_layout(parent.target, parent.layout, form)
    stem = parent.package.stem
    config = parent.manifest.config | {
        "scheme": scheme,
        "format": form.format,
        "package": f"{stem}{suffix or form.suffix}",
        "compression": compression,
    }

    def copy_shared(folder: Path) -> None:
        for file in SHARED:
            (folder / file).write_bytes((parent.path / file).read_bytes())

    return write_bundle(
        path,
        make_package,
        copy_shared,
        name=parent.name,
        parent=parent.model_hash,
        no_answer=parent.no_answer,
        config=config,
        tools=parent.manifest.tools,
        replace=replace,
    )


def package_name(name: str, suffix: str) -> str:
    """The model's file name, which Xcode makes a class name of: "tiny-bert" gives TinyBert.mlpackage, and "string" StringQA.mlpackage."""
    words = "".join(letter if letter.isascii() and letter.isalnum() else " " for letter in name).split()
    stem = "".join(word[0].upper() + word[1:] for word in words) or "Model"
    return f"{'' if stem[0].isalpha() else 'Model'}{stem}{'QA' if stem in TAKEN.split() else ''}{suffix}"


def sizes(bundle: Bundle) -> dict[str, int]:
    """Bytes of the model ("package"), of its weight file ("weights"), and of a zip archive of it ("zipped"), as a download would be.

    A model in one file holds weights and graph together: both figures are then the file's.
    """
    files = model_files(bundle.package)
    total = sum(file.stat().st_size for file in files)
    weights = total if bundle.package.is_file() else sum(file.stat().st_size for file in files if file.name == "weight.bin")
    return {"package": total, "weights": weights, "zipped": zipped_bytes(bundle.package)}


def _check_config(bundle: Bundle) -> None:
    """The entries that the properties read are there, and the target takes the scheme.  Raises CorruptFolder."""
    config = bundle.manifest.config
    if missing := [key for key in CONFIG if key not in config]:
        raise CorruptFolder(f"{bundle.path}/manifest.json: {', '.join(missing)} missing in config. {_remedy(bundle)}")
    try:
        form = check_scheme(bundle.target, bundle.scheme)
        check_layout(bundle.target, bundle.layout, form)
        if form.format != bundle.format:
            raise OptionsError(f"{bundle.scheme} for {bundle.target.name} is of format {form.format}, found {bundle.format}")
        if not bundle.lengths or bundle.window.max_tokens > max(bundle.lengths):
            raise OptionsError(f"windows of {bundle.window.max_tokens} tokens exceed the lengths {json.dumps(bundle.lengths)}")
    except (OptionsError, TypeError) as error:
        raise CorruptFolder(f"{bundle.path}/manifest.json contradicts itself: {error}. {_remedy(bundle)}") from None


def _check_files(bundle: Bundle) -> None:
    listed, package = bundle.manifest.files, bundle.package.name
    missing = [name for name in SHARED if name not in listed]
    if not any(name == package or name.startswith(f"{package}/") for name in listed):
        missing.append(package)
    if missing:
        raise CorruptFolder(f"Expected {bundle.path}/manifest.json to hold the sha256 of {', '.join(missing)}, found none. {_remedy(bundle)}")
    if absent := [name for name in listed if not (bundle.path / name).is_file()]:
        raise IncompleteFolder(f"{bundle.path} is not a whole bundle: {', '.join(absent)} missing. {_remedy(bundle)}")
    if changed := [name for name, expected in listed.items() if sha256_file(bundle.path / name) != expected]:
        raise CorruptFolder(f"{bundle.path}: {', '.join(changed)} differ from what was written (sha256 in manifest.json). {_remedy(bundle)}")


def _specification(package: Path, target: Target) -> int | None:
    """Version of a Core ML model's specification, None for ExecuTorch.  Raises EngineError where it exceeds what the target loads."""
    if not target.coreml:
        return None
    import_coremltools()
    from coremltools.proto import Model_pb2

    model = Model_pb2.Model()
    model.ParseFromString((package if package.is_file() else package / SPECIFICATION).read_bytes())
    if model.specificationVersion > target.specification:
        raise EngineError(
            f"Expected a model of specification version {target.specification} or less, which {target.name} loads, "
            f"found {model.specificationVersion}: a step of the conversion has raised it. Nothing was written."
        )
    return int(model.specificationVersion)


def _write_trace(bundle: Bundle) -> None:
    """What each operation of an ML program computes, so that `pocketqa verify` can name one that was changed."""
    if bundle.format == EXECUTORCH.format:
        return
    from mobile_export.interpreter.trace import record_trace, trace_window
    from mobile_export.verification.artefact import program_of

    program = program_of(bundle)
    trace = record_trace(program, trace_window(program))
    (bundle.path / TRACE).write_text(json.dumps(trace, separators=(",", ":")) + "\n", encoding="utf-8")


def _remedy(bundle: Bundle) -> str:
    return _again(bundle.path, str(bundle.manifest.config.get("target")))


def _again(folder: Path, target: str) -> str:
    return f"Copy the bundle again from where it came from, or make it with: {_export_command(folder, target)} --force"


def _export_command(folder: Path, target: str = "ios16") -> str:
    out = folder if folder.suffix != ".mlpackage" else Path("DIR")
    return f"pocketqa export CHECKPOINT --target {target} --out {shlex.quote(str(out))}"
