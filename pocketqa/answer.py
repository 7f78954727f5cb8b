"""pocketqa answer: put a question to text files, on the command line.

pocketqa answer --question "Who built the mill?" --context "The mill was built by Ada in 1850."
pocketqa answer --question "Who built the mill?" --context-file history.txt --context-file letters.txt --top-k 3
curl -s https://example.org/history.txt | pocketqa answer --question "Who built the mill?" --context-file -
pocketqa answer --question "Who built the mill?" --context-file history.txt --model models/teacher --json
pocketqa answer --jsonl questions.jsonl --out answers.jsonl

The answer may stand in any of the passages; its place is given in characters (Unicode code points) of the file, a leading byte-order mark not
counted.  The exit status is 0 when an answer or "no answer" is printed, and 2 for input that cannot be used.

--jsonl answers a file of any size, line by line in its order; each line is an object with "question", "context" (a text or a list of texts) and, if
you like, "id".  A line that cannot be answered (no JSON, no question, over a megabyte) becomes a line with "error" in its place, and the exit status
is 1 at the end.  Stopped in any way, the same command, without --force, goes on where it was and leaves the same bytes; OUT.run.json keeps the
count.  --ray puts the blocks of lines out to a Ray cluster, or to the cores of this machine; its machines need the input and the model at the same
paths.
"""

from __future__ import annotations

import argparse
import codecs
import json
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pocketqa.arguments import verb_parser
from pocketqa.errors import IncompleteFolder, InputError, OptionsError, TextError
from pocketqa.folders import not_a_folder
from pocketqa.reader import Reader
from pocketqa.runtimes import ENGINES, PRECISIONS
from pocketqa.types import JSON, SPECIAL_TOKENS, Answer, Result, SpanOptions, WindowOptions

DEFAULT_MODEL = Path("models/student")
STDIN = "-"
LONGEST_QUESTION = WindowOptions().max_tokens - SPECIAL_TOKENS - WindowOptions().doc_stride - 1  # of several windows, each with new text
EXCERPT_CHARACTERS = 60  # of context on each side of the answer
OPEN, CLOSE = "«", "»"
TURNS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # embeddings, overrides and isolates of Unicode's bidirectional algorithm


@dataclass(frozen=True, slots=True)
class Passage:
    """A text to look in, and what to call it."""

    name: str
    text: str
    file: str | None = None  # as given on the command line; None for --context and standard input


def main(argv: list[str]) -> int:
    """Answer one question and print the result; raises PocketQAError for input that cannot be used."""
    arguments = _parser().parse_args(argv)
    if sys.stdout is None:
        raise InputError("Expected a standard output to print to, found it closed.")
    _check_way(arguments)
    options = SpanOptions(top_k=arguments.top_k, no_answer=arguments.no_answer)
    if arguments.jsonl is not None:
        return _answer_file(arguments, options)
    passages = read_passages(arguments.passages or [])
    reader = Reader.open(find_model(arguments.model), engine=arguments.engine, threads=arguments.threads, precision=arguments.precision)
    windows = WindowOptions(max_question_tokens=arguments.max_question_tokens)
    result = reader.answer(arguments.question, [passage.text for passage in passages], window_options=windows, span_options=options)
    if arguments.json:
        show_json(as_json(arguments.question, passages, reader, result))
    else:
        show("\n".join(as_lines(passages, reader, result)))
    return 0


def read_passages(sources: Sequence[tuple[str, str]]) -> list[Passage]:
    """Passages from ("text", TEXT) and ("file", FILE or "-") pairs.  Raises TextError naming file and byte."""
    if not sources:
        raise TextError('Expected a passage to look in, found none. Give --context "TEXT" or --context-file FILE ("-" reads standard input).')
    if sum(source == ("file", STDIN) for source in sources) > 1:
        raise TextError("Standard input can be read only once; give --context-file - once.")
    passages = []
    for number, (kind, value) in enumerate(sources, 1):
        if kind == "text":
            passages.append(Passage(f"passage {number}" if len(sources) > 1 else "the passage", value))
        elif value == STDIN:
            passages.append(Passage("standard input", decode_utf8(_read_stdin(), "standard input")))
        else:
            passages.append(Passage(value, _read_file(value), value))
    for passage in passages:
        if not passage.text.strip():
            raise TextError(f"Expected text in {passage.name}, found {'only white space' if passage.text else 'nothing'}.")
    return passages


def decode_utf8(data: bytes, name: str) -> str:
    """Bytes as text, line ends kept.  Raises TextError naming the first byte that is not UTF-8."""
    try:
        return data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise TextError(
            f"{one_line(name)}: expected UTF-8 text, found byte 0x{data[error.start]:02x} at byte offset {error.start}. "
            "Convert it, for instance with: iconv -f LATIN1 -t UTF-8"
        ) from None


def find_model(given: Path | None) -> Path:
    """The model folder named, or the bundled student: in the working directory, else beside the package in a checkout."""
    beside = Path(__file__).resolve().parent.parent / DEFAULT_MODEL
    folder = given or (beside if beside.is_dir() and not DEFAULT_MODEL.is_dir() else DEFAULT_MODEL)
    if (found := not_a_folder(folder)) is not None:
        raise IncompleteFolder(
            f"Expected a model folder at {folder}, found {found}. The repository carries models/student and models/teacher: run from a "
            "checkout or name one with --model DIR. To make one from any BERT, DistilBERT or MobileBERT question-answering checkpoint: "
            "pocketqa package CHECKPOINT --out DIR"
        )
    return folder


def as_lines(passages: Sequence[Passage], reader: Reader, result: Result) -> list[str]:
    """The result for a person: answers with place and excerpt, then model, sizes and times."""
    lines = []
    if not result.answers:
        lines.append("No span of the passages is admissible as an answer.")
    for number, answer in enumerate(result.answers, 1):
        prefix = f"{number}. " if len(result.answers) > 1 else ""
        if answer.is_no_answer:
            lines += [f"{prefix}(no answer in {'this passage' if len(passages) == 1 else 'these passages'})", f"   score {answer.score:.3f}"]
            continue
        passage = passages[answer.source]
        lines.append(prefix + one_line(answer.text))
        lines.append(f"   score {answer.score:.3f}, {one_line(passage.name)}, characters {answer.start} to {answer.end} of {len(passage.text)}")
        lines.append(f"   {excerpt(passage.text, answer)}")
    info, times = reader.info, result.timings
    stages = ", ".join(f"{stage} {1000 * seconds:.1f} ms" for stage, seconds in _stages(result).items())
    sizes = f"{_count(result.windows, 'window')}, {_count(result.tokens, 'token')}"
    lines.append("")
    lines.append(f"{reader.name} on {info.engine} {info.version}, {info.precision}, {_count(info.threads, 'thread')}: {sizes}")
    lines.append(f"{stages}; {1000 * times.total:.1f} ms in all")
    return lines


def as_json(question: str, passages: Sequence[Passage], reader: Reader, result: Result) -> JSON:
    """The result for a program; times in seconds, places in code points."""
    answers = [
        {
            **asdict(answer),
            "file": None if answer.is_no_answer else passages[answer.source].file,
            "excerpt": "" if answer.is_no_answer else excerpt(passages[answer.source].text, answer),
        }
        for answer in result.answers
    ]
    return {
        "question": question,
        "answers": answers,
        "model": {"name": reader.name, "sha256": reader.model_hash, **asdict(reader.info)},
        "timings": {**_stages(result), "total": result.timings.total},
        "windows": result.windows,
        "tokens": result.tokens,
    }


def excerpt(text: str, answer: Answer) -> str:
    """One line of the passage around the answer, which stands between « and »; "…" where text was left out."""
    begin, end = max(0, answer.start - EXCERPT_CHARACTERS), min(len(text), answer.end + EXCERPT_CHARACTERS)
    before, after = one_line(text[begin : answer.start]), one_line(text[answer.end : end])
    line = f"{before.lstrip()}{OPEN}{one_line(answer.text)}{CLOSE}{after.rstrip()}"
    return f"{'…' if begin > 0 else ''}{line}{'…' if end < len(text) else ''}"


def one_line(text: str) -> str:
    """Text without line breaks, and without what could steer the terminal: control characters, and those that turn the direction of what follows."""
    return "".join(" " if letter.isspace() else "\ufffd" if unicodedata.category(letter) == "Cc" or letter in TURNS else letter for letter in text)


def show(text: str) -> None:
    """Print, with escapes for letters that standard output does not have: those of a passage or of a file's name."""
    encoding = _encoding()
    print(text.encode(encoding, errors="backslashreplace").decode(encoding))


def show_json(document: JSON) -> None:
    """Print one JSON document, with JSON's own escapes where standard output may not have all letters."""
    show(json.dumps(document, ensure_ascii=codecs.lookup(_encoding()).name != "utf-8", indent=2))


def _encoding() -> str:
    return getattr(sys.stdout, "encoding", None) or "utf-8"


def _check_way(arguments: argparse.Namespace) -> None:
    """One question or a file of them.  Raises OptionsError for a mixture."""
    bulk = arguments.jsonl is not None
    wanted = ("--jsonl", "--out") if bulk else ("--question",)
    given = {"--question": arguments.question, "--jsonl": arguments.jsonl, "--out": arguments.out, "--ray": arguments.ray}
    given |= {"--context": arguments.passages, "--force": arguments.force or None}
    missing = [name for name in wanted if given[name] is None]
    foreign = [name for name in (("--question", "--context") if bulk else ("--out", "--ray", "--force")) if given[name] is not None]
    if missing or foreign:
        way = "--jsonl IN --out OUT for a file of questions" if bulk else "--question Q for one question, or --jsonl IN --out OUT for a file of them"
        found = [*(f"no {name}" for name in missing), *foreign]
        raise OptionsError(f"Expected {way}, found {' and '.join(found)}.")
    if arguments.threads is not None and arguments.threads < 1:
        raise OptionsError(f"Expected --threads to be at least 1, found {arguments.threads}.")
    if not 1 <= arguments.max_question_tokens <= LONGEST_QUESTION:
        raise OptionsError(
            f"Expected --max-question-tokens of 1 to {LONGEST_QUESTION}, which leaves room for the passage, found {arguments.max_question_tokens}."
        )


def _answer_file(arguments: argparse.Namespace, options: SpanOptions) -> int:
    from pocketqa.bulk.lines import Asked
    from pocketqa.bulk.run import answer_file, report

    answering = None
    if arguments.ray is not None:
        from pocketqa.bulk.ray_data import over_ray

        answering = over_ray(arguments.ray)
    model = find_model(arguments.model)
    asked = Asked(arguments.engine, arguments.precision, arguments.threads, options, WindowOptions(max_question_tokens=arguments.max_question_tokens))
    summary = answer_file(arguments.jsonl, arguments.out, model, asked, arguments.force, answering)
    return report(summary, arguments.json)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _stages(result: Result) -> dict[str, float]:
    return {"tokenise": result.timings.tokenise, "forward": result.timings.forward, "decode": result.timings.decode}


def _read_stdin() -> bytes:
    if sys.stdin is None:
        raise InputError("Expected a text on standard input, found it closed. Name a file in place of -.")
    return sys.stdin.buffer.read()


def _read_file(name: str) -> str:
    try:
        return decode_utf8(Path(name).read_bytes(), name)
    except OSError as error:
        raise InputError(f"Expected a text file at {name}, but it cannot be read: {error.strerror}.") from None


def _parser() -> argparse.ArgumentParser:
    parser = verb_parser("pocketqa answer", __doc__)
    add = parser.add_argument
    add("--question", metavar="Q", help="the question")
    add("--context", dest="passages", action="append", type=lambda v: ("text", v), metavar="TEXT", help="a passage to look in; may be repeated")
    add("--context-file", dest="passages", action="append", type=lambda v: ("file", v), metavar="FILE", help='a UTF-8 file, "-" for standard input')
    add("--model", type=Path, metavar="DIR", help=f"model folder (default: {DEFAULT_MODEL}, the bundled student)")
    add("--engine", choices=("auto", *ENGINES), default="auto", help="inference engine (default: %(default)s)")
    add("--precision", choices=PRECISIONS["auto"], help="fp32, bf16 or int8 where the engine offers a choice; int8 needs a form of the folder")
    add("--top-k", type=int, default=1, metavar="N", help="number of answers, best first (default: %(default)s)")
    add("--no-answer", action="store_true", help='let "no answer" compete, with the threshold in the model\'s manifest')
    add("--max-question-tokens", type=int, default=WindowOptions().max_question_tokens, metavar="N", help="longest question (default: %(default)s)")
    add("--threads", type=int, metavar="N", help="threads of a forward pass (default: all usable cores; with --ray 1, and an actor for each)")
    add("--json", action="store_true", help="print one JSON document; with --jsonl a summary")
    add("--jsonl", type=Path, metavar="IN", help="answer every line of this file")
    add("--out", type=Path, metavar="OUT", help="where the answers to --jsonl go, line by line")
    add("--ray", nargs="?", const="local", metavar="ADDRESS", help="compute on the Ray cluster there; without ADDRESS on one of this machine's cores")
    add("--force", action="store_true", help="begin anew, whatever an earlier run left at OUT")
    return parser
