"""What the contestants of a benchmark are asked: lists of queries, made once and given to every contestant alike.

    squad     questions on their passages (those of the samples are longer than most of SQuAD's), windows of at most 384 tokens, padded only where
              a program takes fixed lengths
    fixed     windows of real text that hold exactly 128 or 384 tokens, as MLPerf Mobile and the phones of the DistilBERT paper take them
    stsb      every pair of GLUE's STS-B development file once, unpadded (the CPU experiment of the DistilBERT paper, table 3)

Queries are text wherever there is any, so that the time of the tokenizer is measured too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pocketqa import squad
from pocketqa.errors import DataError, OptionsError
from pocketqa.features import Tokenizer
from pocketqa.runs import DataFile
from pocketqa.types import JSON, MAX_WINDOW_TOKENS, SPECIAL_TOKENS, QAExample, Request, WindowOptions

SAMPLES = Path(squad.__file__).with_name("samples.json")
LONGEST_WINDOW = WindowOptions().max_tokens
MAX_QUERIES = 2048  # distinct queries held by each contestant: twice what the full mode draws at least
LONGEST_PAIR = 384  # tokens; every pair of STS-B is far shorter
STSB_PAIRS = 1500  # of GLUE's development file
STSB_COLUMNS = ("sentence1", "sentence2")


@dataclass(frozen=True, slots=True)
class Query:
    """One thing to ask: a question on a passage, or the ids (T,) of a window as they stand."""

    question: str = ""
    context: str = ""
    ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Workload:
    """Queries and how they are cut into windows.

    name: short and unique ("squad", "fixed-384"); description: in words, for run files; whole: each query is asked exactly once, in a seeded
    order, in place of draws with replacement; expected: how many queries a whole pass must have to count, None where any number will do.
    """

    name: str
    description: str
    queries: tuple[Query, ...]
    windows: WindowOptions
    data: tuple[DataFile, ...] = ()
    whole: bool = False
    expected: int | None = None
    fixed_length: int | None = None  # positions of every window, where they are all the same

    def to_json(self) -> JSON:
        """What the process of a contestant needs."""
        window = (self.windows.max_tokens, self.windows.doc_stride, self.windows.max_question_tokens)
        return {"queries": [[query.question, query.context, list(query.ids)] for query in self.queries], "window": window}


def squad_workload(
    source: str | Path | None = None,
    *,
    limit: int = MAX_QUERIES,
    seed: int = 0,
    max_tokens: int = LONGEST_WINDOW,
    tokenizer: Tokenizer | None = None,
) -> Workload:
    """Questions of a SQuAD-format file (default: the project's own samples) with the lengths they have; a longer file is sampled.

    tokenizer: where it is given, questions too long for a window are left out, and the description says how many.
    """
    examples, data = _examples(source, limit, seed)
    overlap = max_tokens // 3  # for 384 tokens 128, as in the BERT SQuAD recipe
    options = WindowOptions(max_tokens, overlap, max_tokens - overlap - SPECIAL_TOKENS - 1)
    kept = [e for e in examples if tokenizer is None or tokenizer.count_tokens(e.question) <= options.max_question_tokens]
    if not kept:
        raise DataError(f"{data.name}: expected at least one question of at most {options.max_question_tokens} tokens, found none.")
    shown = f"{len(kept):,} questions of {data.name}, windows of at most {max_tokens} tokens"
    if len(kept) < len(examples):
        shown += f"; {len(examples) - len(kept):,} longer questions left out"
    queries = tuple(Query(example.question, example.context) for example in kept)
    return Workload("squad", shown, queries, options, (replace(data, count=len(kept)),))


def fixed_workload(length: int, tokenizer: Tokenizer, source: str | Path | None = None, *, limit: int = MAX_QUERIES, seed: int = 0) -> Workload:
    """Windows of exactly `length` tokens: each question before a passage that goes on with the next passages of the file and is cut to fit.

    Raises OptionsError for a length that no window has, DataError where the file holds too little text.
    """
    if not 16 <= length <= MAX_WINDOW_TOKENS:
        raise OptionsError(f"A fixed length lies between 16 and {MAX_WINDOW_TOKENS} tokens, found {length}.")
    examples, data = _examples(source, limit, seed)
    options = WindowOptions(length, 0, length // 2)
    contexts = list(dict.fromkeys(example.context for example in examples))
    following = {context: i for i, context in enumerate(contexts)}
    queries = []
    for example in examples:
        if tokenizer.count_tokens(example.question) > options.max_question_tokens:
            continue
        text = _long_enough(contexts, following[example.context], length, tokenizer)
        query = _cut(example.question, text, options, tokenizer)
        if query is not None:
            queries.append(query)
    if not queries:
        raise DataError(f"{data.name}: expected text for at least one window of {length} tokens, found too little. Name a longer file with --data.")
    description = f"windows of exactly {length} tokens of real text from {data.name}"
    return Workload(f"fixed-{length}", description, tuple(queries), options, (data,), fixed_length=length)


def stsb_workload(folder: str | Path) -> Workload:
    """The sentence pairs of dev.tsv in a folder of GLUE's STS-B: tab-separated with a header line and without quoting.  Raises DataError."""
    path = Path(folder) / "dev.tsv" if Path(folder).is_dir() else Path(folder)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        problem = f"Expected GLUE's STS-B development file at {path}, which cannot be read: {error}"
        raise DataError(f"{problem}. Name the folder that holds dev.tsv.") from None
    header = lines[0].rstrip("\r").split("\t")
    if missing := [name for name in STSB_COLUMNS if name not in header]:
        raise DataError(f"{path}: expected a header with the columns {' and '.join(STSB_COLUMNS)}; {' and '.join(missing)} missing.")
    first, second = (header.index(name) for name in STSB_COLUMNS)
    queries = []
    for number, line in enumerate(lines[1:], 2):
        if not line.strip():
            continue
        fields = line.rstrip("\r").split("\t")
        if len(fields) != len(header) or not fields[first].strip() or not fields[second].strip():
            raise DataError(f"{path}: line {number}: expected {len(header)} columns with two sentences, found {len(fields)} columns.")
        queries.append(Query(fields[first], fields[second]))
    if not queries:
        raise DataError(f"{path}: expected at least one pair of sentences, found none.")
    data = DataFile(path.name, squad.source_hash(path), len(queries), "other")
    options = WindowOptions(LONGEST_PAIR, 0, LONGEST_PAIR // 2)
    description = f"one pass over {len(queries):,} STS-B development pairs, unpadded, with the span head in place of the paper's regression head"
    return Workload("stsb", description, tuple(queries), options, (data,), whole=True, expected=STSB_PAIRS)


def _examples(source: str | Path | None, limit: int, seed: int) -> tuple[list[QAExample], DataFile]:
    path = SAMPLES if source is None else source
    examples = squad.load(path, limit, seed)
    return examples, DataFile(Path(path).name, squad.source_hash(path), len(examples), "samples" if source is None else "other")


def _long_enough(contexts: Sequence[str], at: int, length: int, tokenizer: Tokenizer) -> str:
    """A passage followed by as many of those after it (then from the start again) as make `length` tokens."""
    text, tokens, step = contexts[at], tokenizer.count_tokens(contexts[at]), 0
    while tokens < length and step < 4 * len(contexts) + length:
        step += 1
        more = contexts[(at + step) % len(contexts)]
        text, tokens = f"{text} {more}", tokens + tokenizer.count_tokens(more)
    return text


def _cut(question: str, text: str, options: WindowOptions, tokenizer: Tokenizer) -> Query | None:
    """The question with the text up to where its first window ends, if that makes exactly one window of the wanted length.

    The pieces of a word cut behind one of them stay the same, since WordPiece takes the longest piece from the left.
    """
    window = tokenizer.encode([Request(question, (text,))], options).windows[0]
    query = Query(question, text[: int(window.offsets[:, 1].max())])
    again = tokenizer.encode([Request(query.question, (query.context,))], options).windows
    return query if len(again) == 1 and len(again[0]) == options.max_tokens and np.array_equal(again[0].ids, window.ids) else None
