"""`pocketqa compress BUNDLE --scheme SCHEME --out DIR`: a smaller bundle from a float16 one, and what it costs.

pocketqa compress bundles/student-ios16 --scheme int8 --out bundles/student-ios16-int8
pocketqa compress bundles/student-ios18 --scheme mixed --max-f1-drop 1 --data development.json --out bundles/student-ios18-mixed
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mobile_export.compression.compress_text import summary
from mobile_export.compression.quantisation import SPARSITY
from mobile_export.targets import MIXED, NETWORK, PROGRAM, SCHEMES, TARGETS, check_scheme
from mobile_export.verification.comparison import check_questions, is_squad_dev
from pocketqa import runs, squad
from pocketqa.arguments import verb_parser
from pocketqa.errors import OptionsError
from pocketqa.evaluation import judged
from pocketqa.results import compression_results
from pocketqa.runtimes.cached import default_folder
from pocketqa.types import JSON, QAExample, RuntimeInfo, WindowOptions
from pocketqa.writes import atomic_folder

if TYPE_CHECKING:
    from mobile_export.bundle import Bundle
    from mobile_export.compression.pareto import Point, Schemes
    from pocketqa.evaluation import Measured

BEYOND = 1  # exit status: the loss is not shown to be within the budget, or the written bundle is not sound
SAMPLE, POINTS = 32, 8
EPILOG = """\
schemes, and the targets that load them:
  int8      8 bits with a scale for each channel (ios15 and iphone7plus: in the older neuralnetwork type)   {int8}
  palette6  6 bits: indices into the best table of 64 values for each weight                                 {palette6}
  palette4  4 bits: a table of 16 values                                                                     {palette4}
  int4      4 bits with a scale for each 32 values                                                           {int4}
  sparse    the smallest half (--sparsity) of each weight zero and not stored                                {sparse}
  mixed     a scheme for each weight, chosen within --max-f1-drop                                            {mixed}

Embeddings (words and positions) take the same scheme, except that with int4 and sparse they take int8; --embeddings chooses.
Biases, LayerNorm, the span head and everything else of at most 2048 values stay in float16. No computation is changed,
and the specification version is never raised. Some systems are reported to load 4-bit weights wrongly, or not at all
(https://github.com/apple/coremltools/issues/2716), which no other machine can see: try the bundle on the phone.

mixed: each weight in each scheme alone, how far the answers' distributions move (--sample questions); then combinations, the
least harm for each byte saved first; then the loss of F1 of up to --points of them, against the float16 bundle on the
questions of --data (--limit). The smallest whose 95 % interval ends below --max-f1-drop is written: the fewer questions, the
wider the interval. Measure on a development split. Logits are kept in --cache, so that an interrupted search goes on.

--max-f1-drop X needs at least 300 / X questions, and what is not shown to be within it is not written. Questions longer than
the bundle's Swift takes are left out.

Exit status: 0 done, 1 nothing is shown to be within --max-f1-drop (of int8 and fp16 without it: within 0.6 and 0.3, and the
bundle is written), or the written bundle is not sound, 2 refused.

examples:
  pocketqa compress bundles/student-ios16 --scheme palette4 --embeddings int8 --out bundles/student-palette4
  pocketqa compress bundles/student-ios16 --scheme int8 --out bundles/student-int8 --data dev.json --max-f1-drop 0.6
  pocketqa compress bundles/student-ios18 --scheme mixed --max-f1-drop 1 --data dev.json --out bundles/student-mixed --run-file runs
"""


def main(argv: list[str]) -> int:
    """Run the verb; returns the exit status.  Raises PocketQAError."""
    given = _parser().parse_args(argv)
    _check(given)
    runs.check_target(given.run_file)

    from mobile_export.bundle import check_out, open_bundle

    bundle = open_bundle(given.bundle)
    _check_bundle(bundle, given)
    out = Path(given.out)
    check_out(out, given.force)
    examples = _examples(bundle, given) if given.data else []
    report = _search(bundle, out, examples, given) if given.scheme == MIXED else _compress(bundle, out, examples, given)
    print(json.dumps(report) if given.json else summary(report, given.data), flush=True)
    if given.run_file:
        _progress(f"run file: {runs.write(_run(bundle, report, given, argv), given.run_file)}")
    return 0 if report["passed"] else BEYOND


def _examples(bundle: Bundle, given: argparse.Namespace) -> list[QAExample]:
    """What the loss of F1 is measured on.  Raises OptionsError where it is SQuAD dev and not said to be, or too little for the budget."""
    from mobile_export.verification.verification import asked_in_app

    if given.split != "squad-dev" and is_squad_dev(given.data):
        raise OptionsError(f"{given.data} holds the questions of SQuAD dev, found --split {given.split}. Name a development split, or say squad-dev.")
    examples = judged(squad.load(given.data, given.limit, given.seed), bundle.no_answer, _progress)
    examples = asked_in_app(examples, bundle, _progress)
    if given.max_f1_drop is not None:
        check_questions(len(examples), given.max_f1_drop)
    return examples


class _Beyond(Exception):
    """The loss is not shown to be within the budget: what was written is not kept."""


def _compress(bundle: Bundle, out: Path, examples: Sequence[QAExample], given: argparse.Namespace) -> JSON:
    """One scheme for all, and what `verify` says of the result beside the float16 bundle; kept unless it is beyond the budget."""
    report = _report(bundle, examples, given)
    with contextlib.suppress(_Beyond), atomic_folder(out, given.force) as folder:
        made, schemes = _write(bundle, folder, given)
        verified = _verified(bundle, made, examples, given)
        report |= _written(made, out, verified) | {"passed": verified["passed"]}
        if results := verified["results"]:
            figures = {"bytes": results["bytes"]["weights"], "f1": results["f1"], "f1_loss": results["agreement"]["f1_loss"]}
            report["points"] = [figures | {"chosen": _chosen(schemes) or {"all matrices": made.scheme}}]
            report["selected"] = 0 if verified["passed"] else None
        if given.max_f1_drop is not None and not verified["passed"]:
            report["out"] = None
            raise _Beyond
    return report


def _verified(bundle: Bundle, made: Bundle, examples: Sequence[QAExample], given: argparse.Namespace) -> JSON:
    """What `verify` says of a compressed bundle beside the float16 one."""
    from mobile_export.verification.isolated import IsolatedRuntime
    from mobile_export.verification.verification import measure_bundle, verify_bundle

    def reference(window: WindowOptions) -> Measured:
        with IsolatedRuntime(bundle.path, threads=given.threads) as runtime:
            return measure_bundle(bundle, runtime, examples, _cache(given), progress=True)

    return verify_bundle(
        made,
        examples=examples,
        reference=reference if examples else None,
        max_f1_loss=given.max_f1_drop,
        threads=given.threads,
        cache=_cache(given),
        progress=True,
    )


def _write(bundle: Bundle, out: Path, given: argparse.Namespace) -> tuple[Bundle, dict[str, str]]:
    """The bundle in one scheme, in an empty folder, and the scheme of each weight, which the older neuralnetwork type does not let choose."""
    from mobile_export.bundle import derive_bundle
    from mobile_export.compression.compression import EMBEDDINGS, compress_bundle, plan, table
    from mobile_export.interpreter.mlprogram import open_program

    title = f"{bundle.name} to {given.scheme} for {bundle.target.name}"
    if check_scheme(bundle.target, given.scheme) == NETWORK:
        from mobile_export.formats.neuralnetwork import write_network

        _progress(f"{title}: all matrices in 8 bits, in the older neuralnetwork type")
        package = bundle.package
        return derive_bundle(bundle, out, lambda path: write_network(package, path), scheme=given.scheme, compression={}), {}
    parts = plan(open_program(bundle.package), given.scheme, given.embeddings, given.sparsity)
    schemes = {part.name: part.scheme for part in parts if part.scheme != "fp16"}
    if not given.embeddings and given.scheme in EMBEDDINGS:
        title += "; embeddings in {}: {}".format(*EMBEDDINGS[given.scheme])
    _progress(f"{title}\n{table(parts)}")
    return compress_bundle(bundle, out, given.scheme, schemes, sparsity=given.sparsity), schemes


def _search(bundle: Bundle, out: Path, examples: Sequence[QAExample], given: argparse.Namespace) -> JSON:
    """A scheme for each weight within the budget, and what `verify` says of the result."""
    from mobile_export.compression.compression import compress_bundle, parts_of, table
    from mobile_export.compression.mixed import SearchOptions, search
    from mobile_export.interpreter.mlprogram import open_program
    from mobile_export.verification.verification import verify_bundle

    options = SearchOptions(given.max_f1_drop, given.sample, given.points, _cache(given), given.seed, given.threads)
    outcome = search(bundle, examples, options, _progress)
    costs = outcome.sensitivity.items()
    report = _report(bundle, examples, given) | {
        "points": [_point(point) for point in outcome.points],
        "sensitivity": {_short(name): {scheme: float(f"{cost:.4g}") for scheme, cost in found.items()} for name, found in costs},
        "windows": outcome.windows,
        "float16_f1": round(outcome.reference.scores.f1, 4),
    }
    chosen = outcome.selected
    if chosen is None:
        return report
    _progress(table(parts_of(open_program(bundle.package), chosen.schemes)))
    forms = {name: outcome.forms[name, scheme] for name, scheme in chosen.schemes.items() if (name, scheme) in outcome.forms}
    made = compress_bundle(bundle, out, MIXED, chosen.schemes, forms=forms, replace=given.force)
    verified = verify_bundle(made, threads=given.threads)
    return report | _written(made, out, verified) | {"selected": outcome.points.index(chosen), "passed": verified["passed"]}


def _report(bundle: Bundle, examples: Sequence[QAExample], given: argparse.Namespace) -> JSON:
    """What is known before anything is measured, and nothing yet of what is not."""
    from mobile_export.bundle import sizes

    return {
        "bundle": bundle.path.name,
        "name": bundle.name,
        "target": bundle.target.name,
        "scheme": given.scheme,
        "questions": len(examples),
        "max_f1_drop": given.max_f1_drop,
        "bytes_before": sizes(bundle),
        "points": [],
        "selected": None,
        "sensitivity": {},
        "passed": False,
        "out": None,
    }


def _written(made: Bundle, out: Path, verified: JSON) -> JSON:
    from mobile_export.bundle import sizes

    return {"out": str(out), "bytes": sizes(made), "verification": verified | {"bundle": out.name}}


def _point(point: Point) -> JSON:
    return {"bytes": point.bytes, "f1": round(point.f1, 4), "f1_loss": point.loss.to_json(), "chosen": _chosen(point.schemes)}


def _chosen(schemes: Schemes) -> JSON:
    return {_short(name): scheme for name, scheme in schemes.items()}


def _short(name: str) -> str:
    """A weight's name in run files, which are kept small."""
    return name.removesuffix("_to_fp16").removesuffix("_weight")


def _cache(given: argparse.Namespace) -> Path:
    return Path(given.cache) if given.cache else default_folder()


def _run(bundle: Bundle, report: JSON, given: argparse.Namespace, argv: Sequence[str]) -> runs.RunFile:
    verified = report.get("verification")
    extra = {key: report[key] for key in ("target", "scheme", "bytes", "bytes_before", "windows", "float16_f1") if key in report}
    workload = f"F1 on {report['questions']:,} questions of {Path(given.data).name} against the float16 bundle"
    results = compression_results(
        workload,
        report["points"],
        sensitivity=report["sensitivity"],
        max_f1_drop=given.max_f1_drop,
        selected=report["selected"],
        extra=extra | {"limit": given.limit, "seed": given.seed},
    )
    info = replace(RuntimeInfo(**verified["engine"]), precision=given.scheme) if verified else None
    subject = runs.Subject.of(bundle.name, given.role or bundle.name, bundle.model_hash, info)
    data = runs.DataFile(Path(given.data).name, squad.source_hash(given.data), report["questions"], given.split)
    name = f"{bundle.name} {bundle.target.name} {given.scheme}"
    return runs.new_run("compression", name, [subject], [data], ["pocketqa", "compress", *argv], results, verified["not_checked"] if verified else ())


def _check(given: argparse.Namespace) -> None:
    """Options that contradict each other, all at once.  Raises OptionsError."""
    problems = []
    for option in ("limit", "run_file", "max_f1_drop"):
        if getattr(given, option) is not None and given.data is None:
            problems.append(f"--{option.replace('_', '-')} needs --data")
    if given.scheme == MIXED:
        if given.max_f1_drop is None or given.data is None:
            problems.append("--scheme mixed needs --max-f1-drop and --data, a development split to measure it on")
        if given.embeddings:
            problems.append("--scheme mixed chooses the scheme of the embeddings itself; leave --embeddings out")
    if given.max_f1_drop is not None and not given.max_f1_drop > 0:
        problems.append(f"--max-f1-drop must be above 0 percent points, found {given.max_f1_drop:g}")
    if given.sparsity != SPARSITY and "sparse" not in (given.scheme, given.embeddings):
        problems.append("--sparsity belongs to the scheme sparse")
    problems += [
        f"--{option} must be at least 1, found {value}"
        for option in ("sample", "points", "threads")
        if (value := getattr(given, option)) is not None and value < 1
    ]
    if problems:
        raise OptionsError("; ".join(problems) + ".")


def _check_bundle(bundle: Bundle, given: argparse.Namespace) -> None:
    """Raises OptionsError where the bundle, its target, the two schemes, or the place of the result do not go together."""
    if bundle.format != PROGRAM.format or bundle.scheme != "fp16":
        raise OptionsError(
            f"Expected a Core ML bundle of scheme fp16, found {bundle.scheme} ({bundle.format}) at {bundle.path}. Compress the bundle that "
            f"`pocketqa export` wrote; a bundle for executorch takes its scheme there: pocketqa export MODEL --target executorch --scheme int8."
        )
    source, out = bundle.path.resolve(), Path(given.out)
    if out.exists() and any(out.samefile(folder) for folder in (source, *source.parents)):
        raise OptionsError(
            f"Expected --out to be another folder than the bundle, which the result is measured against, found {out} for {bundle.path}. "
            "Choose another --out."
        )
    form = check_scheme(bundle.target, given.scheme)
    if form == NETWORK and given.embeddings:
        raise OptionsError(f"--embeddings cannot be chosen for {bundle.target.name}, where int8 stores all matrices in 8 bits.")
    if given.embeddings:
        check_scheme(bundle.target, given.embeddings)


def _parser() -> argparse.ArgumentParser:
    takers = {s: " ".join(target.name for target in TARGETS.values() if s in target.forms and target.coreml) for s in SCHEMES}
    parser = verb_parser(
        "pocketqa compress",
        "Make a smaller bundle from a float16 bundle by storing its weights in fewer bits. Reads the saved bundle only.",
        EPILOG.format(**takers),
    )
    schemes = [scheme for scheme in SCHEMES if scheme not in ("fp16", "fp32")]
    add = parser.add_argument
    add("bundle", metavar="BUNDLE", help="folder made by `pocketqa export`, of scheme fp16")
    add("--scheme", required=True, choices=schemes, help="how weights are stored; see below")
    add("--out", required=True, metavar="DIR", help="the bundle folder to make")
    add("--embeddings", choices=["fp16", *schemes[:-1]], help="scheme of words and positions (default: see below)")
    add("--sparsity", type=float, default=SPARSITY, metavar="S", help=f"share of zeros for sparse (default {SPARSITY:g})")
    add(
        "--max-f1-drop",
        type=float,
        metavar="X",
        help="budget in percent points of F1: the upper end of the interval must lie below it, or nothing is written",
    )
    add("--data", metavar="FILE", help="SQuAD-format development split that the loss of F1 is measured on")
    add("--limit", type=int, metavar="N", help="a seeded sample of N questions over the whole file")
    add("--seed", type=int, default=0, metavar="S", help="of the samples (default 0)")
    add("--split", choices=runs.SPLITS, default="development", help="what the data are, for the run file (default development)")
    add("--sample", type=int, default=SAMPLE, metavar="N", help=f"mixed: questions that sensitivities are measured on (default {SAMPLE})")
    add("--points", type=int, default=POINTS, metavar="N", help=f"mixed: combinations whose F1 is measured, at most (default {POINTS})")
    add("--threads", type=int, metavar="N", help="default: all usable cores")
    add("--cache", metavar="DIR", help="where logits are kept (default: below $XDG_CACHE_HOME/pocketqa)")
    add("--force", action="store_true", help="replace the bundle if it exists")
    add("--run-file", metavar="PATH", help="write a run file of kind compression to this folder or .json path; needs --data")
    add("--role", help="teacher, student, ..., for the run file (default: the model's name)")
    add("--json", action="store_true", help="one JSON document on standard output (progress goes to standard error)")
    return parser


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
