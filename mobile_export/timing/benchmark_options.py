"""The options of `pocketqa benchmark`, checked before anything is measured."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mobile_export.formats.coreml_runtime import UNITS
from mobile_export.timing.contestants import ENGINE_NAMES
from mobile_export.timing.single_stream import MODES, OWN_MINIMUMS, Rules
from pocketqa.arguments import verb_parser
from pocketqa.errors import OptionsError
from pocketqa.runtimes import usable_cores

DEFAULT_ENGINE = "onnxruntime"
WORKLOADS = ("squad", "fixed", "stsb")
PRESETS = ("paper", "zoo")
_PAPER, _RACES = ("--preset paper", ("paper",)), ("races without --preset", (None,))
# Options that not every race reads: what they belong to, in words and as values of --preset.
READERS = {
    **dict.fromkeys(("teacher", "student", "packages", "phone"), _PAPER),
    **dict.fromkeys(("workload", "lengths", "compute_unit"), _RACES),
    "data": ("races without --preset and to --preset paper", (None, "paper")),
}
HUB = {"teacher": "csarron/bert-base-uncased-squad-v1", "student": "distilbert/distilbert-base-uncased-distilled-squad"}
DEFAULT = "{} where it is in the Hub's cache of this machine, else from configuration"
EPILOG = """\
modes (queries and seconds of each contestant; MLPerf Mobile's single-stream rules, 90th percentile of latency; 600 s at most):
{modes}

workloads:
  squad     questions of --data (default: the project's samples) in the lengths they have, windows of at most 384 tokens
  fixed     windows of real text that hold exactly so many tokens (--lengths); bundles that would pad them sit it out
  stsb DIR  every sentence pair of DIR/dev.tsv (GLUE STS-B) once, unpadded, beside the paper's 668 s and 410 s

Every contestant has a process of its own, pinned to as many cores as it has threads; each query goes to all of them, in an order drawn anew,
while the others sleep.  Times are taken inside the process.  "Cold" is a fresh process after its files were dropped from the page cache,
"warm" the next fresh process.  --engines is for model folders; a bundle runs in the engine of its format, and a .mlpackage or .mlmodel on a
Mac only: elsewhere its sizes are reported.

a phone's run file: made by `Timing.swift` of a bundle, as its HOWTO.md shows; or by a program of your own, of kind "latency", as this command writes
it, with schema 1, name, subjects, data, command, created (2026-01-31T12:00:00Z), environment, not_checked, and
  results.workload    what was asked, in words
  results.device      {{"name", "os", "compute_unit": cpu|gpu|ne|all, "thermal_state": nominal|fair|serious|critical, "kind": "phone"}}
  results.mode, .rules {{"queries", "seconds", "valid"}}
  results.timings {{label: summary in ms: {{"count", "mean", "p50", "p90", "p99", "unit"}}}}, .stages {{label: {{"forward": summary, ...}}}}
  results.queries, .seconds {{label: number}}, of all that was timed: count, and mean x count, of .timings
  results.tokens {{label: {{"mean", "positions"}}}}, of a query, positions with padding; left out where it is not known
  results.forward_ratios {{"LABEL / LABEL": {{"value", "low", "high"}}}}, how many times longer; left out where it is not known
  results.load_seconds, .first_run_seconds {{label: {{"cold", "warm"}}}}, .bytes {{label: {{"package", ...}}}}
--check FILE reads one and lists what is missing or wrong; status 1 where its queries and seconds are not what its mode asks for.
"""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The options, with models that followed `--workload` put back among the models.  Raises OptionsError."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    problems = [
        f"--{option.replace('_', '-')} belongs to {words}"
        for option, (words, presets) in READERS.items()
        if arguments.preset not in presets and getattr(arguments, option) != parser.get_default(option)
    ]
    if arguments.preset == "zoo" and "," in (arguments.threads or ""):
        problems.append(f"--preset zoo takes one number of threads, found {arguments.threads}")
    arguments.workload, arguments.stsb, more = split_workloads(arguments.workload)
    arguments.models += more
    if not arguments.models and not arguments.preset and not arguments.check:
        problems.append("expected a model folder or a bundle, found none; name one, or take --preset paper")
    if arguments.models and arguments.preset == "paper":
        problems.append("--preset paper has two models, which --teacher and --student name; expected no others")
    if "stsb" in arguments.workload and arguments.data:
        problems.append("--data is a SQuAD-format file for the workloads squad and fixed; the folder of STS-B follows the word stsb")
    if problems:
        raise OptionsError("; ".join(problems))
    return arguments


def split_workloads(words: Sequence[str]) -> tuple[tuple[str, ...], Path | None, list[str]]:
    """(workloads, folder of STS-B, models) of the words that followed --workload.  Raises OptionsError."""
    names: list[str] = []
    folder, models, rest = None, [], list(words)
    while rest:
        word = rest.pop(0)
        if word in WORKLOADS:
            names.append(word)
            if word == "stsb":
                if not rest:
                    raise OptionsError("Expected the folder of GLUE's STS-B after --workload stsb, found nothing. It holds dev.tsv.")
                folder = Path(rest.pop(0))
        elif not names:
            raise OptionsError(f"Expected a workload out of {', '.join(WORKLOADS)} after --workload, found {word!r}.")
        else:
            models.append(word)
    return tuple(dict.fromkeys(names)) or ("squad", "fixed"), folder, models


def rules_of(arguments: argparse.Namespace) -> Rules:
    """The rules of the mode; with minimums of one's own the mode says so."""
    rules = MODES[arguments.mode]
    if arguments.queries is None and arguments.seconds is None:
        return rules
    queries = rules.queries if arguments.queries is None else arguments.queries
    seconds = rules.seconds if arguments.seconds is None else arguments.seconds
    if queries < 1 or not 0 <= seconds <= rules.max_seconds:
        raise OptionsError(f"--queries must be at least 1 and --seconds between 0 and {rules.max_seconds:.0f}, found {queries} and {seconds}.")
    return replace(rules, mode=f"{rules.mode} {OWN_MINIMUMS}", queries=queries, seconds=seconds)


def thread_counts(arguments: argparse.Namespace) -> tuple[int, ...]:
    """--threads, by default 1 and 2 as far as there are cores.  Raises OptionsError."""
    cores = usable_cores()
    if arguments.threads is None:
        return tuple(count for count in (1, 2) if count <= cores)
    counts = numbers("--threads", arguments.threads)
    if max(counts) > cores:
        raise OptionsError(f"--threads {max(counts)} is more than the {cores} cores that may be used here; threads would wait for one another.")
    return counts


def numbers(option: str, text: str) -> tuple[int, ...]:
    """ "1,2" -> (1, 2).  Raises OptionsError."""
    try:
        found = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise OptionsError(f"Expected {option} to be whole numbers above 0 separated by commas, such as 1,2; found {text!r}.")
    return found


def check_run_file(path: str | None, count: int) -> None:
    """Raises OptionsError where several run files would go to one name."""
    if path and path.endswith(".json") and count > 1:
        raise OptionsError(f"Expected --run-file to be a folder, since there are {count} races with one run file each; found {path}.")


def _parser() -> argparse.ArgumentParser:
    modes = "\n".join(f"  {name:6} at least {rules.queries} queries and {rules.seconds:.0f} s" for name, rules in MODES.items())
    parser = verb_parser(
        "pocketqa benchmark",
        "Bytes and latency of model folders and bundles, one question at a time.",
        EPILOG.format(modes=modes),
    )
    add = parser.add_argument
    add(
        "models",
        nargs="*",
        metavar="MODEL_OR_BUNDLE",
        help="folders made by `pocketqa package`, `export` or `compress`; with --preset zoo, names of its models",
    )
    add("--preset", choices=PRESETS, help="the DistilBERT paper's phone experiment, audited; or small BERTs beside their published figures")
    add("--mode", choices=tuple(MODES), default="quick", help="rules of the run (default: %(default)s; only full is fit to publish)")
    engines = f"out of {', '.join(ENGINE_NAMES)}; with a precision: openvino:bf16 (default: onnxruntime; --preset paper: and executorch)"
    add("--engines", metavar="E,E", help=engines)
    add("--threads", metavar="N,N", help="threads of each contestant (default: 1,2)")
    workloads = "out of squad, fixed, stsb DIR (default: squad fixed); or training, service or load, which have a --help of their own"
    units = "of Core ML, on a Mac: its bundles race by themselves, on as many threads as it likes (default: %(default)s)"
    add("--compute-unit", choices=tuple(UNITS), default="cpu", help=units)
    add("--workload", nargs="+", default=[], metavar="W", help=workloads)
    add("--lengths", default="128,384", metavar="N,N", help="of the workload fixed, in tokens (default: %(default)s)")
    add("--data", metavar="FILE", help="SQuAD-format file for squad and fixed (default: the project's own samples)")
    add("--seed", type=int, default=0, help="of the order of queries and contestants (default: %(default)s)")
    add("--queries", type=int, metavar="N", help="another minimum than the mode's; the result says so")
    add("--seconds", type=float, metavar="S", help="another minimum than the mode's; the result says so")
    add("--run-file", metavar="PATH", help="write run files to this folder, or a single one to this .json path")
    add("--check", metavar="FILE", help="read a run file of a phone or server and say what is missing or wrong in it")
    add("--json", action="store_true", help="print one JSON document instead of tables (progress goes to standard error)")
    paper = parser.add_argument_group("preset paper")
    paper.add_argument("--teacher", metavar="DIR", help=f"BERT-base fine-tuned on SQuAD: a model folder (default: {DEFAULT.format(HUB['teacher'])})")
    paper.add_argument("--student", metavar="DIR", help=f"DistilBERT fine-tuned on SQuAD: a model folder (default: {DEFAULT.format(HUB['student'])})")
    paper.add_argument("--packages", nargs="+", default=[], metavar="BUNDLE", help="bundles of that student, for the sizes of real packages")
    paper.add_argument("--phone", metavar="FILE", help="a phone's run file, to stand beside the paper's")
    return parser
