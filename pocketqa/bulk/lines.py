"""A line of JSON to a question, and a question's result to a line of JSON; a line that cannot be answered becomes a line that says why.

in   {"id": 7, "question": "Who built the mill?", "context": "The mill was built by Ada."}      id is optional, context may be a list of passages
out  {"line": 1, "id": 7, "answer": "Ada", "start": 22, "end": 25, "passage": 0, "score": 0.98}
     {"line": 2, "error": "..."}
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pocketqa.bulk.blocks import LONGEST_LINE, Line
from pocketqa.errors import InputError, TextError
from pocketqa.features import Encoded
from pocketqa.reader import Reader
from pocketqa.types import Answer, Request, Result, SpanOptions, WindowOptions

SCORE_DIGITS = 6
_EXAMPLE = '{"question": "...", "context": "..."}'

Name = str | int | None


@dataclass(frozen=True, slots=True)
class Asked:
    """How the questions are to be answered.  precision, threads: None for the engine's own, and for all usable cores."""

    engine: str = "auto"
    precision: str | None = None
    threads: int | None = None
    spans: SpanOptions = field(default_factory=SpanOptions)
    windows: WindowOptions = field(default_factory=WindowOptions)

    def open_reader(self, model: str | Path) -> Reader:
        """Opens the model.  Raises FolderError and EngineError."""
        return Reader.open(model, engine=self.engine, threads=self.threads, precision=self.precision)


@dataclass(frozen=True, slots=True)
class Item:
    """A question with the number of its line and the id that it came with."""

    line: int
    name: Name
    request: Request


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a line cannot be answered."""

    line: int
    name: Name
    message: str


@dataclass(frozen=True, slots=True)
class Answered:
    """What a block of lines became: their output, and the problems among them."""

    output: bytes
    problems: tuple[Problem, ...]


def answer_lines(reader: Reader, lines: Sequence[Line], asked: Asked) -> Answered:
    """Answer a block of lines together, windows of similar length in one batch.  Raises what is not the fault of a line."""
    parsed = [parse(line) for line in lines]
    items, encoded, refused = _encode(reader, [found for found in parsed if isinstance(found, Item)], asked.windows)
    problems = [*(found for found in parsed if isinstance(found, Problem)), *refused]
    results = reader.decode(encoded, reader.forward(encoded), asked.spans)
    records: dict[int, dict[str, Any]] = {}
    for item, result in zip(items, results, strict=True):
        if result.answers:
            records[item.line] = _record(item, result, asked.spans)
        else:
            problems.append(Problem(item.line, item.name, "No span of the passages is admissible as an answer."))
    problems.sort(key=lambda problem: problem.line)
    records |= {problem.line: _named(problem.line, problem.name) | {"error": problem.message} for problem in problems}
    output = "".join(json.dumps(records[line.number], ensure_ascii=False) + "\n" for line in lines)
    return Answered(output.encode(), tuple(problems))


def parse(line: Line) -> Item | Problem:
    """The question of a line, or why there is none."""
    name: Name = None
    try:
        record = _object(line)
        name = _name(record.get("id"))
        question, context = record.get("question"), record.get("context")
        contexts: list[Any] = context if isinstance(context, list) else [context]
        if not isinstance(question, str):
            raise TextError(f"Expected a text for 'question', found {_kind(record, 'question')}.")
        if not contexts or not all(isinstance(text, str) for text in contexts):
            raise TextError(f"Expected a text or a list of texts for 'context', found {_kind(record, 'context')}.")
        return Item(line.number, name, Request(question, tuple(contexts)))
    except TextError as error:
        return Problem(line.number, name, str(error))


def _object(line: Line) -> dict[str, Any]:
    if line.data is None:
        raise TextError(f"Expected a line of at most {LONGEST_LINE:,} bytes, found a longer one. Cut its passage into a list of several lines.")
    data = line.data.removeprefix(b"\xef\xbb\xbf") if line.number == 1 else line.data
    try:
        record = json.loads(data.decode())
    except UnicodeDecodeError as error:
        raise TextError(f"Expected UTF-8, found byte 0x{data[error.start]:02x} at byte {error.start} of the line.") from None
    except json.JSONDecodeError as error:
        found = f"{error.msg} at column {error.colno}" if data.strip() else "an empty line"
        raise TextError(f"Expected a JSON object such as {_EXAMPLE}, found: {found}.") from None
    except (ValueError, RecursionError):  # a number of thousands of digits, nesting without end
        raise TextError(f"Expected a JSON object such as {_EXAMPLE}, found one that cannot be read.") from None
    if not isinstance(record, dict):
        raise TextError(f"Expected a JSON object such as {_EXAMPLE}, found {type(record).__name__}.")
    return record


def _name(value: object) -> Name:
    if value is not None and (isinstance(value, bool) or not isinstance(value, str | int)):
        raise TextError(f"Expected a text or a whole number for 'id', found {type(value).__name__}.")
    if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise TextError("Expected valid Unicode for 'id', found a lone surrogate (half of a UTF-16 pair).")
    return value


def _kind(record: dict[str, Any], key: str) -> str:
    return type(record[key]).__name__ if key in record else f"no such key among {', '.join(map(repr, list(record)[:8])) or 'none at all'}"


def _encode(reader: Reader, items: Sequence[Item], windows: WindowOptions) -> tuple[Sequence[Item], Encoded, list[Problem]]:
    """The questions that can be encoded with their windows, and what is wrong with the others."""
    try:
        return items, reader.encode([item.request for item in items], windows), []
    except InputError:  # of which one it does not say
        usable, problems = [], []
    for item in items:
        try:
            reader.encode([item.request], windows)
            usable.append(item)
        except InputError as error:
            problems.append(Problem(item.line, item.name, str(error)))
    return usable, reader.encode([item.request for item in usable], windows), problems


def _record(item: Item, result: Result, options: SpanOptions) -> dict[str, Any]:
    record = _named(item.line, item.name) | _fields(result.best, options)
    return record | ({"answers": [_fields(answer, options) for answer in result.answers]} if options.top_k > 1 else {})


def _named(line: int, name: Name) -> dict[str, Any]:
    return {"line": line} | ({} if name is None else {"id": name})


def _fields(answer: Answer, options: SpanOptions) -> dict[str, Any]:
    fields: dict[str, Any] = {"answer": answer.text, "start": answer.start, "end": answer.end, "passage": answer.source}
    if options.no_answer:
        fields["no_answer"] = answer.is_no_answer
    return fields | {"score": round(answer.score, SCORE_DIGITS)}
