"""PocketQA: extractive question answering small enough for a phone, with proof of what was lost.

>>> from pocketqa import Reader                                         # doctest: +SKIP
>>> reader = Reader.open("models/student")                              # doctest: +SKIP
>>> print(reader.answer("Who built it?", "The mill was built by Ada.").best.text)   # doctest: +SKIP
Ada
"""

from pocketqa.errors import (
    CorruptFolder,
    DataError,
    EngineError,
    FolderError,
    IncompleteFolder,
    InputError,
    MissingExtra,
    OptionsError,
    PocketQAError,
    StaleGraph,
    TextError,
    TrainingError,
    VocabularyMismatch,
)
from pocketqa.reader import Reader
from pocketqa.types import Answer, QAExample, Request, Result, Scores, SpanOptions, StageTimings, WindowOptions

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "CorruptFolder",
    "DataError",
    "EngineError",
    "FolderError",
    "IncompleteFolder",
    "InputError",
    "MissingExtra",
    "OptionsError",
    "PocketQAError",
    "QAExample",
    "Reader",
    "Request",
    "Result",
    "Scores",
    "SpanOptions",
    "StageTimings",
    "StaleGraph",
    "TextError",
    "TrainingError",
    "VocabularyMismatch",
    "WindowOptions",
]
