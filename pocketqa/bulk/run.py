"""`pocketqa answer --jsonl IN --out OUT`: what a run is made of, its progress, its end.  Who computes the blocks is exchangeable."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pocketqa
from pocketqa.answer import show, show_json
from pocketqa.bulk.blocks import Block, Survey, read_lines, survey
from pocketqa.bulk.lines import Answered, Asked, answer_lines
from pocketqa.bulk.output import Output, check_places
from pocketqa.errors import EngineError
from pocketqa.features import Encoded
from pocketqa.folders import MANIFEST, ModelFolder, sha256_file
from pocketqa.reader import Reader
from pocketqa.runtimes.forms import INT8, form_folder
from pocketqa.spans import check_options
from pocketqa.types import JSON, WindowOptions

PROGRESS_SECONDS = 10.0
SOME_FAILED = 1  # exit status


@dataclass(frozen=True, slots=True)
class Job:
    """What whoever computes needs to know.  model: the folder, resolved; expected: what must be found there, as `identity` tells it."""

    source: str
    model: str
    asked: Asked
    expected: tuple[str, str, str]

    def open_reader(self) -> Reader:
        """The model of the run.  Raises FolderError, and EngineError where another model or engine is found than the run began with."""
        reader = self.asked.open_reader(self.model)
        if (there := identity(reader, Path(self.model))) != self.expected:
            expected, found = (f"{weights} on {engine} with the manifest {manifest}" for weights, engine, manifest in (self.expected, there))
            raise EngineError(f"Expected {expected} at {self.model}, found {found}. Use one install on all machines.")
        return reader


Answering = Callable[[Job, Sequence[Block]], Iterator[Answered]]  # the blocks, in their order


def identity(reader: Reader, model: Path) -> tuple[str, str, str]:
    """What answers depend on: the sha256 of the weights, what computes with them, and the sha256 of the folder's manifest, which holds those of its
    tokenizer and graph and the no-answer threshold; in int8 of the form's manifest too.
    """
    info, folder = reader.info, ModelFolder(model)
    manifests = [folder.manifest, *([form_folder(folder, info.engine) / MANIFEST] if info.precision == INT8 else [])]
    return reader.model_hash, f"{info.engine} {info.version} {info.precision}", " ".join(sha256_file(path) for path in manifests)


def answer_file(
    source: Path,
    out: Path,
    model: Path,
    asked: Asked,
    force: bool = False,
    answering: Answering | None = None,
) -> JSON:
    """Answer every line of `source` into `out`, going on where an earlier run stopped.  Returns the summary.

    answering: who computes; None for this process.  Raises PocketQAError.
    """
    check_places(out, source)
    began = time.monotonic()
    surveyed = survey(source)
    reader = asked.open_reader(model)
    check_options(Encoded((), (), (), asked.windows, 0.0), asked.spans, reader.no_answer)
    job = Job(str(source.resolve()), str(model.resolve()), asked, identity(reader, model))
    with Output(out, _run(surveyed, job), force) as output:
        resumed = output.state.lines
        if not output.state.complete:
            blocks = surveyed.blocks[output.state.blocks :]
            answered = answering(job, blocks) if answering else _here(job, reader, blocks)
            for block, made in _told(zip(blocks, answered, strict=True), surveyed, resumed):
                output.append(made, block.lines)
            output.finish()
        state = output.state
    seconds = time.monotonic() - began
    return {
        "out": str(out),
        "lines": state.lines,
        "answered": state.lines - state.failed,
        "failed": state.failed,
        "problems": list(state.problems),
        "resumed_at": resumed,
        "seconds": round(seconds, 3),
        "lines_per_second": round((state.lines - resumed) / seconds, 2),
        "model": {"name": reader.name, "sha256": reader.model_hash, **asdict(reader.info)},
    }


def report(summary: JSON, as_json: bool) -> int:
    """Print the summary, problems to standard error.  Returns the exit status: 0, or 1 where a line could not be answered."""
    if as_json:
        show_json(summary)
    else:
        new = summary["lines"] - summary["resumed_at"]
        went_on = f" ({summary['resumed_at']} of them were there)" if summary["resumed_at"] else ""
        show(f"{summary['out']}: {summary['lines']} lines{went_on}, {summary['failed']} not answered")
        show(f"{new} lines in {summary['seconds']:.1f} s, {summary['lines_per_second']:.1f} a second")
    for problem in summary["problems"]:
        print(problem, file=sys.stderr)
    if (hidden := summary["failed"] - len(summary["problems"])) > 0:
        print(f"and {hidden} more: grep '\"error\"' {summary['out']}", file=sys.stderr)
    return SOME_FAILED if summary["failed"] else 0


def _here(job: Job, reader: Reader, blocks: Sequence[Block]) -> Iterator[Answered]:
    for block in blocks:
        yield answer_lines(reader, read_lines(Path(job.source), block), job.asked)


def _run(surveyed: Survey, job: Job) -> JSON:
    """What the output depends on, in words that a message can name."""
    weights, engine, manifest = job.expected
    longer = {"windows": asdict(job.asked.windows)} if job.asked.windows != WindowOptions() else {}  # runs of before know none
    settings = {"engine": engine, "set of options": asdict(job.asked.spans) | longer, "version": pocketqa.__version__}
    return {"input": surveyed.sha256, "model": weights, "manifest": manifest, **settings}


def _told(pairs: Iterator[tuple[Block, Answered]], surveyed: Survey, resumed: int) -> Iterator[tuple[Block, Answered]]:
    """The same, telling rate and time left on standard error."""
    began = told = time.monotonic()
    done, total = resumed, surveyed.lines
    if resumed:
        print(f"Going on after line {resumed:,} of {total:,}.", file=sys.stderr, flush=True)
    for block, made in pairs:
        yield block, made
        done += block.lines
        now = time.monotonic()
        if now - told > PROGRESS_SECONDS and done < total:
            rate = (done - resumed) / (now - began)
            print(f"{done:,}/{total:,} lines, {rate:.1f} a second, {(total - done) / rate / 60:.1f} min left", file=sys.stderr, flush=True)
            told = now
