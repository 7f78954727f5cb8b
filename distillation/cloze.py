"""Questions out of raw text, for a model that is to answer questions and has few that people wrote.

    pocketqa cloze --corpus text/ --out cloze.json.gz --limit 50000
    pocketqa finetune TEACHER --data cloze.json.gz --out TEACHER-cloze             # first these,
    pocketqa finetune TEACHER-cloze --data train-v1.1.json --out TEACHER-qa        # then the real ones

Each question is a sentence of a passage with a question word in the place of a span that the rest of the passage repeats (see
`distillation/text/recurring.py`); the answer is where it stands there.  One question a passage; passages are drawn from the whole corpus.
The file is in SQuAD's format.  The same corpus, seed and limit give the same bytes.
"""

from __future__ import annotations

import gzip
import json
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from distillation.text.corpus_cache import ReadingProgress
from distillation.text.corpus_text import Source, find_sources
from distillation.text.recurring import cloze, passages
from pocketqa.arguments import verb_parser
from pocketqa.errors import DataError
from pocketqa.types import JSON
from pocketqa.writes import write_atomic

LONGEST_TEXT = 1_000_000  # letters of a text that are held at once; a longer one is cut between paragraphs
SPARE = 2  # passages drawn for each question that is wanted: not every one repeats something


def main(argv: list[str]) -> int:
    """The verb `pocketqa cloze`.  Raises DataError."""
    parser = verb_parser("pocketqa cloze", __doc__)
    words = "text files, folders of them, or Hub data sets NAME[@REVISION][:CONFIG[:SPLIT]][#COLUMN]; a line is a paragraph, an empty one ends a text"
    parser.add_argument("--corpus", nargs="+", required=True, metavar="TEXT", help=words)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="SQuAD-format file to write, .json or .json.gz")
    parser.add_argument("--limit", type=int, default=50_000, metavar="N", help="most questions (default: %(default)s)")
    parser.add_argument("--max-words", type=int, default=200, metavar="N", help="longest passage (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the passages, spans and forms that are drawn (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print what was made as JSON")
    given = parser.parse_args(argv)
    if given.limit < 1 or given.max_words < 1 or not given.out.name.endswith((".json", ".json.gz")):
        raise DataError(
            "Expected --limit and --max-words of at least 1 and --out to end with .json or .json.gz, "
            f"found {given.limit}, {given.max_words} and {given.out.name}."
        )
    if not given.out.absolute().parent.is_dir():
        raise DataError(f"Expected a folder at {given.out.absolute().parent} to write {given.out.name} in, found none. Make it first.")
    draw = random.Random(given.seed)
    read, kept = drawn(_passages(find_sources(given.corpus), given.max_words, _silent if given.json else _say), SPARE * given.limit, draw)
    paragraphs = list(_questions(kept, given.limit, draw))
    if not paragraphs:
        raise DataError(f"Expected passages that name something twice, in two sentences; found none in {read:,}. Name a corpus of running text.")
    document = {"version": "cloze", "data": [{"title": "recurring spans", "paragraphs": paragraphs}]}
    content = json.dumps(document, ensure_ascii=False).encode()
    write_atomic(given.out, gzip.compress(content, mtime=0) if given.out.suffix == ".gz" else content)
    made = {"questions": len(paragraphs), "passages": read, "out": str(given.out), "seed": given.seed}
    print(json.dumps(made) if given.json else f"{len(paragraphs):,} questions from {read:,} passages, in {given.out}")
    return 0


def drawn(items: Iterator[str], count: int, draw: random.Random) -> tuple[int, list[str]]:
    """How many items there are, and `count` of them, each equally likely, in memory for no more than those (Vitter 1985, algorithm R)."""
    kept: list[str] = []
    number = 0
    for number, item in enumerate(items, start=1):
        if len(kept) < count:
            kept.append(item)
        elif (place := draw.randrange(number)) < count:
            kept[place] = item
    draw.shuffle(kept)  # a corpus that fits is kept in its order otherwise, and its beginning alone would be used
    return number, kept


def _passages(sources: Sequence[Source], max_words: int, say: Callable[[str], None]) -> Iterator[str]:
    progress = ReadingProgress(sum(source.size for source in sources), "reading", "passages", say)
    made = 0
    for source in sources:
        paragraphs: list[str] = []
        letters = 0
        for line, read in source.lines():
            if line:
                paragraphs.append(line)
                letters += len(line)
            if line and letters < LONGEST_TEXT:
                continue
            for passage in passages(" ".join(paragraphs), max_words):
                made += 1
                yield passage
            paragraphs, letters = [], 0
            progress.say(read, made)
        progress.done += source.size


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _silent(line: str) -> None:
    """Nothing beside the JSON."""


def _questions(kept: Sequence[str], limit: int, draw: random.Random) -> Iterator[JSON]:
    made = 0
    for passage in kept:
        if made < limit and (found := cloze(passage, draw)) is not None:
            answers = [{"text": text, "answer_start": start} for text, start in found.answers]
            yield {"context": found.context, "qas": [{"id": f"cloze-{made}", "question": found.question, "answers": answers}]}
            made += 1
