"""`pocketqa export CHECKPOINT --target TARGET --out PATH`: a Core ML package for an iPhone, made and checked on any machine.

pocketqa export models/student --target ios16 --out Student.mlpackage
pocketqa export models/teacher --target ios17 --lengths 64,128,256,384,512 --out exports --json
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mobile_export.targets import DEFAULT_LENGTHS, MIN_LENGTH, TARGETS, check_lengths, find_target
from pocketqa import runs
from pocketqa.errors import FolderError, OptionsError
from pocketqa.types import JSON, MAX_WINDOW_TOKENS

if TYPE_CHECKING:
    from mobile_export.checkpoints import Checkpoint
    from mobile_export.coreml import Exported
    from mobile_export.targets import Target

SUFFIX = ".mlpackage"
MEGABYTE = 1e6
EPILOG = """\
targets:
{targets}

The package has one input, input_ids (1, T) int32: the window `[CLS] question [SEP] passage [SEP]`, padded. It derives the
attention mask and, for BERT, the token types itself. Outputs: start_logits and end_logits (1, T) float32. The vocabulary,
the special ids, the window options and the checkpoint's hash are in its metadata (in Swift:
model.modelDescription.metadata[.creatorDefinedKey]).

Before it is kept, the network is compared with the checkpoint's own in float32, and the saved file is searched for what
float16 cannot hold.

examples:
  pocketqa export models/student --target ios16 --out Student.mlpackage
  pocketqa export models/teacher --target iphone7plus --out Teacher.mlpackage
  pocketqa export models/student --target ios17 --lengths 64,128,256,384,512 --out exports/
  pocketqa export distilbert-base-cased-distilled-squad --target ios18 --out DistilBERT.mlpackage
"""


def main(argv: list[str]) -> int:
    """Run the verb; returns the exit status.  Raises PocketQAError."""
    arguments = _parser().parse_args(argv)
    target = find_target(arguments.target)
    lengths = check_lengths(_lengths(arguments))
    path = _package_path(arguments.out, arguments.checkpoint)
    if path.exists() and not arguments.force:  # said before the minutes of work, not after
        raise FolderError(f"Expected nothing at {path}, found something. Choose another --out, or add --force to replace it.")

    from mobile_export.tools import check_can_write

    check_can_write()
    from mobile_export.checkpoints import open_checkpoint
    from mobile_export.coreml import export_package

    began = time.perf_counter()
    checkpoint = open_checkpoint(arguments.checkpoint)
    check_lengths(lengths, checkpoint.positions)
    _progress(_plan(checkpoint, target, lengths, path))
    exported = export_package(checkpoint, path, target, lengths, replace=arguments.force)
    report = _report(exported, target, lengths, time.perf_counter() - began)
    if arguments.run_file:
        _progress(f"run file: {runs.write(_run(report, checkpoint, arguments.role, argv), arguments.run_file)}")
    print(json.dumps(report) if arguments.json else _summary(report, exported.path))
    return 0


def _parser() -> argparse.ArgumentParser:
    targets = "\n".join(f"  {t.name:12} Core ML specification {t.specification}, {t.minimum_os} or later: {t.devices}" for t in TARGETS.values())
    parser = argparse.ArgumentParser(
        prog="pocketqa export",
        description="Write a BERT or DistilBERT question-answering checkpoint as a float16 Core ML package (.mlpackage). Works on Linux and macOS.",
        epilog=EPILOG.format(targets=targets),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "checkpoint", help="model folder (config.json, model.safetensors, tokenizer.json or vocab.txt), or its name on the Hugging Face Hub"
    )
    parser.add_argument("--target", required=True, metavar="|".join(TARGETS), help="the oldest system that must load the package; see below")
    parser.add_argument("--out", required=True, help=f"package to write, ending in {SUFFIX}; any other path is a folder to put NAME{SUFFIX} in")
    lengths = parser.add_mutually_exclusive_group()
    lengths.add_argument(
        "--length", type=int, help=f"the one window length in tokens, {MIN_LENGTH} to {MAX_WINDOW_TOKENS} (default: {DEFAULT_LENGTHS[0]})"
    )
    lengths.add_argument("--lengths", metavar="N,N,...", help="several lengths in one package; short windows then cost less. Works on every target")
    parser.add_argument("--force", action="store_true", help="replace the package if it exists")
    parser.add_argument("--run-file", metavar="PATH", help="write a run file (sizes, specification) to this folder or .json path")
    parser.add_argument("--role", help="teacher, student, ..., for the run file (default: the model's name)")
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead of the summary (progress goes to standard error)")
    return parser


def _lengths(arguments: argparse.Namespace) -> tuple[int, ...]:
    if arguments.lengths is None:
        return DEFAULT_LENGTHS if arguments.length is None else (arguments.length,)
    try:
        return tuple(int(part) for part in arguments.lengths.split(","))
    except ValueError:
        raise OptionsError(
            f"Expected --lengths to be whole numbers separated by commas, such as 64,128,256,384,512; found {arguments.lengths!r}."
        ) from None


def _package_path(out: str, checkpoint: str) -> Path:
    path = Path(out)
    if path.suffix == SUFFIX:
        return path
    if path.is_file():
        raise FolderError(f"Expected --out to end in {SUFFIX} or to be a folder, found the file {path}.")
    return path / f"{Path(checkpoint).resolve().name}{SUFFIX}"


def _plan(checkpoint: Checkpoint, target: Target, lengths: tuple[int, ...], path: Path) -> str:
    config = checkpoint.model.config
    parameters = sum(parameter.numel() for name, parameter in checkpoint.model.named_parameters() if ".pooler." not in name)
    return (
        f"{checkpoint.name}: {config.model_type}, {config.num_hidden_layers} layers x {config.hidden_size}, "
        f"{parameters / 1e6:.1f} million parameters (about {2 * parameters / MEGABYTE:.0f} MB in float16)\n"
        f"target {target.name}: {target.minimum_os} or later, specification {target.specification}; "
        f"window {'length' if len(lengths) == 1 else 'lengths'} {', '.join(map(str, lengths))}\n"
        f"checking and converting to {path} ..."
    )


def _report(exported: Exported, target: Target, lengths: tuple[int, ...], seconds: float) -> JSON:
    from mobile_export.metadata import PREFIX
    from mobile_export.mlprogram import describe

    description = describe(exported.path)
    description["metadata"].pop(f"{PREFIX}vocabulary")  # thousands of lines; it is in the package
    checks = {
        "max_difference_from_transformers": exported.agreement.transformers,
        "epsilon_effect": exported.agreement.epsilon,
        "windows_compared": exported.agreement.inputs,
        "hazards": [],
    }
    return description | {
        "target": target.name,
        "minimum_os": target.minimum_os,
        "lengths": list(lengths),
        "checks": checks,
        "seconds": round(seconds, 2),
    }


def _run(report: JSON, checkpoint: Checkpoint, role: str | None, argv: Sequence[str]) -> runs.RunFile:
    features = {kind: {feature["name"]: _shape(feature) for feature in report[kind]} for kind in ("inputs", "outputs")}
    results = runs.export_results(
        target=report["target"],
        precision="fp16",
        package_bytes=report["bytes"]["package"],
        weight_bytes=report["bytes"]["weights"],
        specification_version=report["specification_version"],
        **features,
    )
    subject = runs.Subject(checkpoint.name, role or checkpoint.name, checkpoint.sha256)
    not_checked = ["Core ML's own arithmetic: this machine has no Core ML; the float32 network was compared with transformers"]
    name = f"{checkpoint.name} {report['target']}"
    return runs.new_run("export", name, [subject], [], ["pocketqa", "export", *argv], results | {"checks": report["checks"]}, not_checked)


def _shape(feature: JSON) -> str:
    return f"{feature['dtype']} {' or '.join(str(tuple(shape)) for shape in feature['shapes']) or '(1, T) as the input'}"


def _summary(report: JSON, path: Path) -> str:
    features = [
        f"  {kind} {feature['name']}: {_shape(feature)}" for kind, group in (("input ", "inputs"), ("output", "outputs")) for feature in report[group]
    ]
    sizes, checks = report["bytes"], report["checks"]
    return "\n".join(
        (
            f"Wrote {path}",
            f"  Core ML specification {report['specification_version']} ({report['target']}: {report['minimum_os']} or later)",
            *features,
            f"  size: {sizes['package'] / MEGABYTE:.1f} MB, of which weights {sizes['weights'] / MEGABYTE:.1f} MB (1 MB = 10^6 bytes)",
            f"  float32 network: within {checks['max_difference_from_transformers']:.1e} of transformers on {checks['windows_compared']} windows",
            f"  float16-safe LayerNorm epsilon: moves logits by {checks['epsilon_effect']:.1e}; no float16 hazard in the saved file",
            f"  took {report['seconds']:.1f} s",
            "",
            f"Next: drag {path} into an Xcode project; Xcode makes a class {path.stem!r} with prediction(input_ids:).",
        )
    )


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
