"""pocketqa report: RESULTS.md and the README's table, generated from the committed run files.

    pocketqa report                  write both
    pocketqa report --check          change nothing; exit status 1 and the first difference when they disagree with the run files
    pocketqa report --html report    also report/index.html, with figures, and each figure as a PNG (extra `report`)

The pages depend on the run files, on the published claims in claims.toml, on the list of experiments in experiments.toml, on the models that belong
together in pairs.toml and on what notes.toml says of the data and models alone, so the same ones always give the same bytes; figures also on the
version of matplotlib.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pocketqa.arguments import verb_parser
from pocketqa.errors import DataError, OptionsError
from pocketqa.reporting import load_tables, mobile_tables, replica_tables, service_tables, tables, training_tables, zoo_tables
from pocketqa.reporting.claims import Claims, claim_lines, read_claims
from pocketqa.reporting.experiments import Experiment, experiment_lines, read_experiments
from pocketqa.reporting.harder_tables import harder_lines
from pocketqa.reporting.lists import read_list
from pocketqa.reporting.pairs import Pair, earlier_weights, of_current, pair_statements, read_pairs
from pocketqa.runs import SPLITS, RunFile, read_all
from pocketqa.types import JSON
from pocketqa.writes import write_atomic

START, END = "<!-- results:start -->", "<!-- results:end -->"
TITLES = {
    "squad-dev": "SQuAD v1.1 dev",
    "development": "Development split",
    "out-of-domain": "Out of domain",
    "samples": "The bundled samples",
    "training": "Training data",
    "other": "Other data",
}
ROUNDS = (
    "Intervals of rates draw whole rounds, those of times draw questions; where either are fewer than 20, they are too narrow. Of few questions the "
    "p99 is the time of the longest passages, and has no interval."
)
NOTES = {
    "SQuAD v1.1 dev": "How good the models are. For scale: of hidden size 768, and trained on all 87,599 questions of SQuAD, BERT-base has F1 88.5, "
    "DistilBERT 85.8, with a second distillation step 86.9 (Sanh et al. 2019, table 2).",
    "Development split": "What is chosen is chosen here.",
    "Sizes": "How small the models are, as files. A loss of F1 is against the same weights in float32.",
    "Compression": "How few bits each weight of an exported model needs.",
    "Training": "Weights are named as training left them; packaging rounds them to float16, so that packaged models have other digits.",
    "Classification": "What distillation keeps of other tasks than answering questions.",
    "Ablation": "What each part of distillation is worth. The models compared here are made for it.",
    "Experiments": "What was tried to make the models better, and what came of it.",
    "Training speed": "Tokens a second of this project's training and of a plain one done well, in turns on one machine.",
    "Latency": "What one question takes, asked alone, by the rules of MLPerf Mobile's single stream.",
    "The paper's phone experiment": "The DistilBERT paper's measurement on an iPhone 7 Plus, beside what is published of it and what runs here.",
    "Zoo": "Sizes and operations counted from configurations, times of models with random weights.",
    "Claims audited": "What papers say, what their own figures give, and what was measured here.",
    "Service": f"The server against plain ones, taking turns on the same cores. Machines differ between runs: compare within a run only. {ROUNDS}",
    "Load": f"Times and highest rates under load. {ROUNDS}",
    "Scale-out": f"Several servers behind a balancer. {ROUNDS}",
    "Exports": "Packages as written.",
    "Not checked": "What no run could check.",
}
NO_RUNS = "There are no run files yet, so there is nothing to report: no number of this project has been published."
EXPORTED = (
    "As exported, each run from its saved bytes alone. A gate passes where the loss of F1 is shown to be below the limit of its scheme: the"
    " upper end of its interval is, which takes the more questions the smaller the limit."
)
PAGE = "index.html"
CLAIMS = Path("claims.toml")
EXPERIMENTS, PAIRS, SAID = "experiments.toml", "pairs.toml", "notes.toml"
Link = Callable[[str, RunFile], str]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Lists:
    """What is not in run files: claims of others, what was tried, which models belong together, and what sections say of these models and data."""

    claims: Claims = field(default_factory=Claims)
    experiments: Sequence[Experiment] = ()
    pairs: Sequence[Pair] = ()
    notes: Mapping[str, str] = field(default_factory=dict)


def main(argv: list[str]) -> int:
    """Write or check RESULTS.md and the README's table; returns the exit status."""
    arguments = _parser().parse_args(argv)
    if arguments.check and arguments.html:
        raise OptionsError("--check changes nothing, so it cannot go with --html, which writes; give one of them.")
    if not arguments.runs.is_dir():
        raise DataError(f"Expected a folder of run files at {arguments.runs}, found {'a file' if arguments.runs.exists() else 'nothing'}.")
    if arguments.html and arguments.html.exists() and not arguments.html.is_dir():
        raise OptionsError(f"Expected a folder for --html, found a file at {arguments.html}. Name another place.")
    runs = read_all(arguments.runs)
    lists = _lists(arguments)
    page = results_page(runs, *_both_links(arguments.runs, arguments.out), lists)
    wanted = [(arguments.out, with_contents(page))]
    if not arguments.no_readme:
        wanted.append(
            (arguments.readme, readme_page(arguments.readme, readme_table(runs, _links(arguments.runs, arguments.readme, brief=True), lists.pairs)))
        )
    if arguments.check:
        problems = [problem for path, text in wanted if (problem := first_difference(path, text))]
        if problems:
            print(f"{problems[0]}\nThe run files in {arguments.runs} say otherwise. Write the pages again with: pocketqa report", file=sys.stderr)
            return 1
        print(f"{' and '.join(str(path) for path, _ in wanted)} {'agrees' if len(wanted) == 1 else 'agree'} with {len(runs)} run files.")
        return 0
    for path, text in wanted:
        try:
            path.write_text(text, encoding="utf-8", newline="\n")
        except OSError as error:
            raise DataError(f"Expected to write {path}, but it cannot be written: {error.strerror}. Make its folder, or name another file.") from None
        print(f"Wrote {path} from {len(runs)} run files.")
    if arguments.html:
        write_html(runs, lists, arguments.runs, arguments.html)
    return 0


def write_html(runs: tables.Runs, lists: Lists, folder: Path, out: Path) -> None:
    """The results as one page with embedded figures, and the figures beside it.  Those that the page there showed before are removed."""
    from pocketqa.reporting.figures import pictures
    from pocketqa.reporting.page import html_page

    drawn = pictures(of_current(runs, lists.pairs), TITLES)
    out.mkdir(parents=True, exist_ok=True)
    page = html_page(results_page(runs, *_both_links(folder, out / PAGE), lists), drawn)
    before = (out / PAGE).read_text(encoding="utf-8", errors="replace") if (out / PAGE).is_file() else ""
    for old in set(out.glob("*.png")) - {out / f"{picture.name}.png" for picture in drawn}:
        if f"({old.name})</figcaption>" in before:
            old.unlink()
    for picture in drawn:
        write_atomic(out / f"{picture.name}.png", picture.png)
    write_atomic(out / PAGE, page.encode())
    print(f"Wrote {out / PAGE} with {len(drawn)} figures from {len(runs)} run files.")


def results_page(runs: tables.Runs, link: Link, brief: Link, lists: Lists | None = None) -> str:
    """RESULTS.md as text; the same run files and lists always give the same text.

    link: says where a row comes from, with the command; brief: without.
    """
    lists = lists or Lists()
    head = [
        "# Results",
        "",
        "Generated by `pocketqa report` from run files; edits by hand are found by `pocketqa report --check`.",
        "EM and F1 are those of the official SQuAD evaluation, in percent. Brackets hold 95 % bootstrap intervals (10,000 resamples, of times and",
        "rates 1,000 or more); differences and ratios are paired, question by question. A model is named by the first digits of the sha256 of its",
        "weights.",
        "",
    ]
    if not runs:
        return "\n".join([*head, NO_RUNS, ""])
    if earlier := earlier_weights(runs, lists.pairs):
        head += [*earlier, ""]
    sections = [
        *((TITLES[split], _split_lines(runs, split, link, lists.pairs)) for split in SPLITS),
        ("Sizes", mobile_tables.size_lines(runs, brief)),
        ("Compression", mobile_tables.compression_lines(runs, link)),
        ("Training", training_tables.training_lines(runs, link)),
        ("Classification", training_tables.task_lines(runs, link)),
        ("Ablation", training_tables.ablation_lines(runs, link)),
        ("Experiments", experiment_lines(lists.experiments, runs, brief)),
        ("Training speed", training_tables.speed_lines(runs, link)),
        ("Latency", mobile_tables.latency_lines(runs, link)),
        ("The paper's phone experiment", mobile_tables.audit_lines(runs, brief)),
        ("Zoo", zoo_tables.zoo_lines(runs, link)),
        ("Claims audited", claim_lines(lists.claims, of_current(runs, lists.pairs), brief, lists.pairs[-1].note if lists.pairs else "")),
        ("Service", service_tables.service_lines(runs, link)),
        ("Load", load_tables.load_lines(runs, link)),
        ("Scale-out", replica_tables.replica_lines(runs, link)),
        ("Exports", tables.export_table(runs, link)),
        ("Not checked", _not_checked(runs, brief)),
    ]
    filled = [(title, body) for title, body in sections if body]
    told = {title: " ".join(said[title] for said in (NOTES, lists.notes) if title in said) for title, _ in filled}
    return "\n".join(
        [*head, *(line for title, body in filled for line in (f"## {title}", "", *([told[title], ""] if told[title] else []), *body, ""))]
    )


def with_contents(page: str) -> str:
    """RESULTS.md with a list of its sections before the first one."""
    head, *sections = page.split("\n## ")
    titles = [section.partition("\n")[0] for section in sections]
    contents = "".join(f"- [{title}](#{_anchor(title)})\n" for title in titles)
    return "\n## ".join([f"{head}\n{contents}" if titles else head, *sections])


def _anchor(title: str) -> str:
    """As GitHub makes it of a heading."""
    return "".join(letter for letter in title.lower().replace(" ", "-") if letter.isalnum() or letter == "-")


def _split_lines(runs: tables.Runs, split: str, link: Link, pairs: Sequence[Pair]) -> list[str]:
    """Evaluations of models on one split, then what was exported from them."""
    found, verified = tables.evaluations(runs, split), mobile_tables.verifications(runs, split)
    articles = tables.evaluations(runs, split, "articles")
    if not found and not verified and not articles:
        return []
    lines: list[str] = []
    if found:
        lines += [*tables.evaluation_table(found, link), ""]
    if verified:
        lines += [EXPORTED, "", *mobile_tables.verification_table(verified, link), ""]
    lines += harder_lines(found, articles, link)
    said = pair_statements(found, pairs)
    return [*lines, *tables.resampling(found | verified | articles), *(["", *said] if said else [])]


def readme_table(runs: tables.Runs, link: Link, pairs: Sequence[Pair] = ()) -> str:
    """The README's section between the markers: the current models on SQuAD dev, and what follows from it."""
    found = tables.current(tables.evaluations(of_current(runs, pairs), "squad-dev"))
    if not found:
        return "SQuAD dev has not been measured yet: there are no run files for it."
    note = "SQuAD v1.1 dev, in percent with 95 % intervals; generated from run files by `pocketqa report`. More in [RESULTS.md](RESULTS.md)."
    forms = {(s.sha256, s.engine, s.precision) for run in found.values() for s in run.subjects}
    times = {form: said for form, said in mobile_tables.question_times(runs, link).items() if form in forms} or None
    note += " Times are of whole questions of the project's own samples, asked one at a time." if times else ""
    small = mobile_tables.size_lines(of_current(runs, pairs), link, {s.sha256 for run in found.values() for s in run.subjects})
    said = (
        ["As files: Core ML packages for an iOS of that number or later, and the folder that servers read (ONNX Runtime, OpenVINO, PyTorch)."]
        if small
        else []
    )
    parts = [[note], tables.evaluation_table(found, link, times), tables.resampling(found), pair_statements(found, pairs[-1:]), said, small]
    return "\n".join(mobile_tables.joined(parts))


def readme_page(path: Path, section: str) -> str:
    """The README with `section` between its markers.  Raises DataError where there is no README or not exactly one pair of markers."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"Expected a README at {path}, found none ({error.strerror}). Name it with --readme, or say --no-readme.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected UTF-8, found another byte at {error.start}. Save it as UTF-8, or say --no-readme.") from None
    if text.count(START) != 1 or text.count(END) != 1 or text.index(START) > text.index(END):
        raise DataError(f"{path}: expected one line {START!r} and after it one line {END!r}; the table goes between them.")
    before, rest = text.split(START)
    return f"{before}{START}\n{section}\n{END}{rest.split(END)[1]}"


def first_difference(path: Path, wanted: str) -> str | None:
    """The first line in which a file differs from what it should be, in words; None when they agree."""
    if not path.is_file():
        return f"{path} does not exist."
    found_lines, wanted_lines = path.read_text(encoding="utf-8", errors="replace").split("\n"), wanted.split("\n")
    for number in range(max(len(found_lines), len(wanted_lines))):
        found = found_lines[number] if number < len(found_lines) else None
        expected = wanted_lines[number] if number < len(wanted_lines) else None
        if found != expected:
            return f"{path}, line {number + 1}:\n  expected: {_line(expected)}\n  found:    {_line(found)}"
    return None


def _line(text: str | None) -> str:
    return "(the end of the file)" if text is None else repr(text)


def _both_links(folder: Path, page: Path) -> tuple[Link, Link]:
    return _links(folder, page), _links(folder, page, brief=True)


def _links(folder: Path, page: Path, brief: bool = False) -> Link:
    """The cell that says where a row comes from: run file, command, machine, date; `brief` leaves command and machine to the run file."""
    runs, here = folder.resolve(), page.resolve().parent
    apart = len(Path(os.path.commonpath((runs, here))).parts) == 1  # a link from one end of a disk to the other would tell of this machine only
    base = folder.name if apart else Path(os.path.relpath(runs, here)).as_posix()

    def link(name: str, run: RunFile) -> str:
        if brief:
            return f"[run file]({base}/{name}), {run.created[:10]}"
        e = run.environment
        machine = ", ".join(part for part in (str(e.get("cpu", "")), f"{e['cores']} cores" if "cores" in e else "") if part)
        return f"[{name}]({base}/{name}): `{run.command}`; {machine or 'machine unknown'}; {run.created[:10]}"

    return link


def _lists(arguments: argparse.Namespace) -> Lists:
    """The lists that are named, or lie where they are looked for."""

    def read(named: Path | None, usual: Path, how: Callable[[Path], T], none: T) -> T:
        return how(named or usual) if named or usual.is_file() else none

    beside = arguments.runs.resolve().with_name
    return Lists(
        read(arguments.claims, CLAIMS, read_claims, Claims()),
        read(arguments.experiments, beside(EXPERIMENTS), read_experiments, ()),
        read(arguments.pairs, beside(PAIRS), read_pairs, ()),
        read(arguments.notes, beside(SAID), read_notes, {}),
    )


def read_notes(path: Path) -> dict[str, str]:
    """What a list says, by section.  Raises DataError with all problems at once."""
    titles = (*TITLES.values(), *(title for title in NOTES if title not in TITLES.values()))

    def problems(entry: JSON) -> list[str]:
        wrong = [] if entry.get("section") in titles else [f"section must be one of {', '.join(titles)}; found {entry.get('section')!r}"]
        wrong += [] if isinstance(entry.get("text"), str) else [f"text must be str, found {entry.get('text')!r}"]
        return wrong + [f"unknown entry {key!r}" for key in entry if key not in ("section", "text")]

    return {entry["section"]: entry["text"] for entry in read_list(path, "notes", "note", problems)}


def _not_checked(runs: tables.Runs, link: Link) -> list[str]:
    """Each thing once, with the first run that says it and how many more do."""
    said: dict[str, list[str]] = {}
    for name, run in runs.items():
        for item in run.not_checked:
            said.setdefault(item, []).append(link(name, run))
    return [f"- {item} ({links[0]}{f', and {len(links) - 1} more' if links[1:] else ''})" for item, links in said.items()]


def _parser() -> argparse.ArgumentParser:
    parser = verb_parser("pocketqa report", __doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of run files (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("RESULTS.md"), help="page to write (default: %(default)s)")
    parser.add_argument("--readme", type=Path, default=Path("README.md"), help="README whose table is filled (default: %(default)s)")
    parser.add_argument("--no-readme", action="store_true", help="leave the README alone")
    parser.add_argument("--claims", type=Path, metavar="FILE", help=f"published claims to audit (default: {CLAIMS}, where there is one)")
    words = f"list of experiments (default: {EXPERIMENTS} beside the run files' folder, where there is one)"
    parser.add_argument("--experiments", type=Path, metavar="FILE", help=words)
    words = f"models that belong together (default: {PAIRS} beside the run files' folder, where there is one; else all of the newest weights)"
    parser.add_argument("--pairs", type=Path, metavar="FILE", help=words)
    words = f"what sections say of these models and data (default: {SAID} beside the run files' folder, where there is one)"
    parser.add_argument("--notes", type=Path, metavar="FILE", help=words)
    parser.add_argument("--html", type=Path, metavar="DIR", help="also write DIR/index.html and its figures (extra `report`)")
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 when a page disagrees with the run files")
    return parser
