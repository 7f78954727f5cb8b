"""`pocketqa export CHECKPOINT --target TARGET --out DIR`: a bundle for an app, with a Core ML package or an ExecuTorch program, on any machine.

pocketqa export models/student --target ios16 --out bundles/student-ios16
pocketqa export models/teacher --target ios17 --lengths 64,128,256,384,512 --out bundles/teacher-ios17 --json
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mobile_export.bundle import Bundle, check_out, sizes
from mobile_export.checkpoint.sources import add_no_answer, said_no_answer
from mobile_export.targets import (
    DEFAULT_LAYOUT,
    DEFAULT_LENGTHS,
    EXECUTORCH,
    LAYOUTS,
    MIN_LENGTH,
    MIXED,
    PROGRAM,
    SCHEMES,
    TARGETS,
    check_layout,
    check_lengths,
    check_scheme,
    find_target,
)
from pocketqa import runs
from pocketqa.arguments import verb_parser
from pocketqa.errors import OptionsError
from pocketqa.types import JSON, MAX_WINDOW_TOKENS

if TYPE_CHECKING:
    from mobile_export.checkpoint.checkpoints import Checkpoint
    from mobile_export.targets import Form, Target

PACKAGES = (".mlpackage", ".mlmodel", ".pte")
MEGABYTE = 1e6
EPILOG = """\
targets:
{targets}

The model has one input, input_ids (1, T) int32: the window `[CLS] question [SEP] passage [SEP]`, padded. It derives the
attention mask and, for BERT, the token types itself. Outputs: start_logits and end_logits (1, T) float32.

DIR becomes a bundle: the model, its vocabulary, golden vectors for the app's tests, Swift code that loads it, and HOWTO.md.

Before anything is kept, the network is compared with the checkpoint's own in float32, and the saved file is searched for
what float16 cannot hold. `pocketqa verify DIR` then runs the saved file itself; `pocketqa compress DIR` makes it smaller.

examples:
  pocketqa export models/student --target ios16 --out bundles/student-ios16
  pocketqa export models/student --target ios17 --layout ane --out bundles/student-ane
  pocketqa export models/teacher --target iphone7plus --scheme int8 --out bundles/teacher-iphone7plus
  pocketqa export models/student --target ios18 --lengths 64,128,256,384,512 --out bundles/student-lengths
  pocketqa export models/student --target executorch --out bundles/student-executorch
  pocketqa export deepset/bert-base-cased-squad2 --no-answer --target ios16 --out bundles/squad2-ios16
"""


def main(argv: list[str]) -> int:
    """Run the verb; returns the exit status.  Raises PocketQAError."""
    arguments = _parser().parse_args(argv)
    runs.check_target(arguments.run_file)
    target = find_target(arguments.target)
    scheme = arguments.scheme or next(iter(target.forms))
    lengths = check_lengths(_lengths(arguments))
    no_answer = said_no_answer(arguments)
    form = _form(target, scheme, arguments)
    check_layout(target, arguments.layout, form)
    out = _out(arguments.out, arguments.checkpoint, target)
    check_out(out, arguments.force)  # said before the minutes of work, not after

    from mobile_export.tools import check_can_write, check_installed

    if form is EXECUTORCH:
        check_installed("writing ExecuTorch programs", "executorch")
    else:
        check_can_write()
    from mobile_export.checkpoint.checkpoints import open_checkpoint
    from mobile_export.formats.exporting import export_bundle

    began = time.perf_counter()
    checkpoint = open_checkpoint(arguments.checkpoint, no_answer)
    check_lengths(lengths, checkpoint.positions)
    _progress(_plan(checkpoint, target, scheme, arguments.layout, lengths, out))
    bundle, checks = export_bundle(checkpoint, out, target, lengths, scheme=scheme, layout=arguments.layout, replace=arguments.force)
    report = _report(bundle, checks, time.perf_counter() - began)
    if arguments.run_file:
        _progress(f"run file: {runs.write(_run(report, checkpoint, arguments.role, argv), arguments.run_file)}")
    print(json.dumps(report) if arguments.json else _summary(report))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = verb_parser(
        "pocketqa export",
        "Write a BERT, DistilBERT, TinyBERT or MobileBERT that answers questions as a bundle for an app. Works on Linux and macOS.",
        EPILOG.format(targets="\n".join(map(_target_help, TARGETS.values()))),
    )
    parser.add_argument(
        "checkpoint", help="model folder (config.json, model.safetensors, tokenizer.json or vocab.txt), or its name on the Hugging Face Hub"
    )
    parser.add_argument("--target", required=True, metavar="|".join(TARGETS), help="the oldest system that must load the model; see below")
    parser.add_argument("--out", required=True, metavar="DIR", help="the bundle folder to make")
    parser.add_argument("--scheme", metavar="|".join(SCHEMES), help="how weights are stored (default: fp16; for executorch fp32)")
    parser.add_argument("--layout", default=DEFAULT_LAYOUT, metavar="|".join(LAYOUTS), help="ane: arranged for the Neural Engine (default: standard)")
    lengths = parser.add_mutually_exclusive_group()
    lengths.add_argument(
        "--length", type=int, help=f"the one window length in tokens, {MIN_LENGTH} to {MAX_WINDOW_TOKENS} (default: {DEFAULT_LENGTHS[0]})"
    )
    lengths.add_argument("--lengths", metavar="N,N,...", help="several lengths in one model; short windows then cost less. Works on every target")
    add_no_answer(parser)
    parser.add_argument("--force", action="store_true", help="replace the bundle if it exists")
    parser.add_argument("--run-file", metavar="PATH", help="write a run file (sizes, specification) to this folder or .json path")
    parser.add_argument("--role", help="teacher, student, ..., for the run file (default: the model's name)")
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead of the summary (progress goes to standard error)")
    return parser


def _target_help(target: Target) -> str:
    specification = f"specification {target.specification}, " if target.specification else ""
    return f"  {target.name:12} {target.minimum_os}, {specification}{target.devices}\n{'':15}schemes: {', '.join(target.forms)}"


def _lengths(arguments: argparse.Namespace) -> tuple[int, ...]:
    if arguments.lengths is None:
        return DEFAULT_LENGTHS if arguments.length is None else (arguments.length,)
    try:
        return tuple(int(part) for part in arguments.lengths.split(","))
    except ValueError:
        raise OptionsError(
            f"Expected --lengths to be whole numbers separated by commas, such as 64,128,256,384,512; found {arguments.lengths!r}."
        ) from None


def _form(target: Target, scheme: str, arguments: argparse.Namespace) -> Form:
    """What is written.  Raises OptionsError for a pair that cannot be, and for one that is made from a float16 bundle."""
    form = check_scheme(target, scheme)
    if form is PROGRAM and scheme != "fp16":
        out = shlex.quote(arguments.out)
        gate = " --max-f1-drop 1 --data DEV.json" if scheme == MIXED else ""
        raise OptionsError(
            f"An export for {target.name} is in fp16, so that it can be verified first; {scheme} is made from it: "
            f"pocketqa export {shlex.quote(arguments.checkpoint)} --target {target.name}{_retyped(arguments)} --out {out}-fp16, "
            f"then: pocketqa compress {out}-fp16 --scheme {scheme}{gate} --out {out}"
        )
    return form


def _retyped(arguments: argparse.Namespace) -> str:
    """The options of every scheme that were typed, to be typed again."""
    words = ["--no-answer"] if arguments.no_answer else []
    for option in ("length", "lengths", "layout", "no_answer_threshold"):
        if (value := getattr(arguments, option)) not in (None, DEFAULT_LAYOUT):
            words += [f"--{option.replace('_', '-')}", shlex.quote(str(value))]
    return "".join(f" {word}" for word in words)


def _out(out: str, checkpoint: str, target: Target) -> Path:
    path = Path(out)
    if path.suffix in PACKAGES:
        folder = f"bundles/{Path(checkpoint).name}-{target.name}"
        raise OptionsError(
            f"Expected --out to be a folder, found {out!r}: an export leaves a bundle, with the {path.suffix}, its vocabulary, tests and how-to. "
            f"Name one, such as --out {folder}."
        )
    return path


def _plan(checkpoint: Checkpoint, target: Target, scheme: str, layout: str, lengths: tuple[int, ...], path: Path) -> str:
    config = checkpoint.model.config
    parameters = sum(parameter.numel() for name, parameter in checkpoint.model.named_parameters() if ".pooler." not in name)
    specification = f", specification {target.specification}" if target.specification else ""
    width, precision = (4, "float32") if scheme == "fp32" else (2, "float16")
    return (
        f"{checkpoint.name}: {config.model_type}, {config.num_hidden_layers} layers x {config.hidden_size}, "
        f"{parameters / 1e6:.1f} million parameters (about {width * parameters / MEGABYTE:.0f} MB in {precision})\n"
        f"target {target.name}: {target.minimum_os} or later{specification}; {scheme}, layout {layout}; "
        f"window {'length' if len(lengths) == 1 else 'lengths'} {', '.join(map(str, lengths))}\n"
        f"checking and converting to {path} ..."
    )


def _report(bundle: Bundle, checks: JSON, seconds: float) -> JSON:
    config = bundle.manifest.config
    return {
        "bundle": str(bundle.path),
        **{key: config[key] for key in ("package", "target", "scheme", "layout", "format", "lengths", "model_type")},
        "minimum_os": bundle.target.minimum_os,
        "specification_version": config["specification"],
        **checks,
        "bytes": sizes(bundle),
        "seconds": round(seconds, 2),
    }


def _run(report: JSON, checkpoint: Checkpoint, role: str | None, argv: Sequence[str]) -> runs.RunFile:
    features = {kind: {feature["name"]: _shape(feature) for feature in report[kind]} for kind in ("inputs", "outputs")}
    results = runs.export_results(
        target=report["target"],
        precision=report["scheme"],
        package_bytes=report["bytes"]["package"],
        weight_bytes=report["bytes"]["weights"],
        specification_version=report["specification_version"],
        **features,
    )
    results |= {"zipped_bytes": report["bytes"]["zipped"]} | {key: report[key] for key in ("scheme", "layout", "format", "lengths", "checks")}
    subject = runs.Subject(checkpoint.name, role or checkpoint.name, checkpoint.sha256)
    not_checked = ["the saved file: `pocketqa verify` runs it; here the float32 network was compared with transformers"]
    variant = [part for part, usual in ((report["scheme"], "fp16"), (report["layout"], DEFAULT_LAYOUT)) if part != usual]
    name = " ".join((checkpoint.name, report["target"], *variant))
    return runs.new_run("export", name, [subject], [], ["pocketqa", "export", *argv], results, not_checked)


def _shape(feature: JSON) -> str:
    return f"{feature['dtype']} {' or '.join(str(tuple(shape)) for shape in feature['shapes']) or '(1, T) as the input'}"


def _summary(report: JSON) -> str:
    features = [
        f"  {kind} {feature['name']}: {_shape(feature)}" for kind, group in (("input ", "inputs"), ("output", "outputs")) for feature in report[group]
    ]
    size, path = report["bytes"], Path(report["bundle"])
    form = report["format"] + (f", specification {report['specification_version']}" if report["specification_version"] else "")
    return "\n".join(
        (
            f"Wrote {path}: {report['package']} with vocabulary, golden vectors, Swift code and HOWTO.md",
            f"  {form} ({report['target']}: {report['minimum_os']} or later), {report['scheme']}, layout {report['layout']}",
            *features,
            f"  size: {size['package'] / MEGABYTE:.1f} MB, of which weights {size['weights'] / MEGABYTE:.1f} MB; "
            f"zipped {size['zipped'] / MEGABYTE:.1f} MB (1 MB = 10^6 bytes)",
            *(f"  {line}" for line in report["said"]),
            *(f"  note: {warning}" for warning in report["checks"]["warnings"]),
            f"  took {report['seconds']:.1f} s",
            "",
            f"Next: pocketqa verify {shlex.quote(str(path))} --data DEV.json    (then follow {path / 'HOWTO.md'})",
        )
    )


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
