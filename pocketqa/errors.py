"""Every exception that PocketQA raises on purpose, in one tree.

PocketQAError
├── InputError            the caller's question, passage or options cannot be used
│   ├── TextError         a question or passage: empty, too long, not valid Unicode
│   └── OptionsError      window, span or command options that contradict or exceed limits
├── DataError             a SQuAD-format or predictions file; names the file and the record
├── FolderError           a model folder or bundle
│   ├── IncompleteFolder  files are missing; lists them
│   ├── CorruptFolder     bytes differ from the manifest's sha256, or unreadable weights
│   └── StaleGraph        model.onnx no longer matches model.safetensors
├── VocabularyMismatch    two models in one comparison do not share a vocabulary
├── MissingExtra          an optional dependency is not installed; names the extra
├── EngineError           an inference engine is unknown, absent or failed
└── TrainingError         a training run cannot start, resume or go on

Each message says what was expected, what was found and what to do next.  Programs embedding PocketQA can write::

    try:
        result = reader.answer(question, passage)
    except pocketqa.PocketQAError as error:
        print(error)
"""

from __future__ import annotations


class PocketQAError(Exception):
    """Base of all deliberate errors."""


class InputError(PocketQAError):
    """The caller's text or options cannot be used."""


class TextError(InputError):
    """A question or passage is empty, too long or not valid Unicode."""


class OptionsError(InputError):
    """Options contradict one another or exceed a limit."""


class DataError(PocketQAError):
    """A data file is not what it should be; the message names file and record."""


class FolderError(PocketQAError):
    """A model folder or bundle cannot be used."""


class IncompleteFolder(FolderError):
    """Files are missing from a model folder."""


class CorruptFolder(FolderError):
    """The bytes of a file differ from the manifest, or cannot be read."""


class StaleGraph(FolderError):
    """model.onnx points at places that model.safetensors no longer holds."""


class VocabularyMismatch(PocketQAError):
    """Two models that should be compared do not share a vocabulary."""


class MissingExtra(PocketQAError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package {package!r}, which is not installed. Install it with: pip install 'pocketqa[{extra}]'")
        self.package = package
        self.extra = extra


class EngineError(PocketQAError):
    """An inference engine is unknown, absent or failed."""


class TrainingError(PocketQAError):
    """A training run cannot start, resume or go on."""
