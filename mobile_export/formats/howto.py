"""The how-to and the Swift source of a bundle, from the templates in `swift/`."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from mobile_export.targets import EXECUTORCH, NETWORK, find_target
from mobile_export.verification.golden import TOLERANCE
from pocketqa.spans import longest_safe_answer
from pocketqa.types import JSON, SpanOptions

HOWTO, SWIFT, TIMING = "HOWTO.md", "QuestionAnswering.swift", "Timing.swift"
FORMS = {"mlprogram": "a Core ML program", "neuralnetwork": "a Core ML neural network", "executorch": "an ExecuTorch program for XNNPACK"}
SCHEMES = {
    "fp16": "weights in float16",
    "fp32": "weights in float32",
    "int8": "weights in 8 bits",
    "int4": "weights in 4 bits, a scale a block",
    "palette4": "weights in tables of 16 values",
    "palette6": "weights in tables of 64 values",
    "sparse": "weights in float16, most of them zero and left out",
    "mixed": "weights in several precisions",
}

UNIT_TOLERANCE = 0.1  # of logits on a phone, whose units round otherwise than the engines of `pocketqa verify`: at least so much
COARSE_TOLERANCE = 0.5  # where verify sets no limit, since the scheme moves logits by design; a wrong weight or a lost mask shows as a share near 1


def write_howto(folder: Path, name: str, model_hash: str, no_answer: bool, config: JSON, tools: dict[str, str]) -> None:
    """Write HOWTO.md and the Swift for a bundle of that configuration; no_answer: whether the checkpoint was trained for it."""
    for source in (SWIFT, TIMING):
        (folder / source).write_text(_template(source), encoding="utf-8")
    executorch = config["format"] == EXECUTORCH.format
    engine = _template("executorch.md" if executorch else "coreml.md")
    text = _template(HOWTO).replace("{{engine}}", engine)
    for key, value in _values(name, model_hash, no_answer, config, tools).items():
        text = text.replace(f"{{{{{key}}}}}", value)
    (folder / HOWTO).write_text(text, encoding="utf-8")


def _values(name: str, model_hash: str, no_answer: bool, config: JSON, tools: dict[str, str]) -> dict[str, str]:
    target, executorch, window = find_target(config["target"]), config["format"] == EXECUTORCH.format, config["window"]
    stem = Path(config["package"]).stem
    layout = ", arranged for the Neural Engine" if config["layout"] == "ane" else ""
    units = ", computeUnits: .cpuOnly" if config["format"] == NETWORK.format else ""
    load, timed = f"try QuestionReader.load(from: folder{units})", f"TimedBundle(folder: folder{units})"
    if executorch:
        load = f'try QuestionReader(folder: folder, model: ExecuTorchSpanModel(path: folder.appendingPathComponent("{config["package"]}").path))'
        timed = f'TimedBundle(folder: folder, engine: "executorch", computeUnit: "cpu") {{ {load} }}'
    casing = "lower-cased" if config["tokenizer"]["lowercase"] else "cased"
    accents = "without accents" if config["tokenizer"]["strip_accents"] else "with accents"
    return {
        "name": name,
        "package": config["package"],
        "folder": stem,
        "form": f"{FORMS[config['format']]}, {SCHEMES[config['scheme']]}{layout}",
        "minimum_os": target.minimum_os,
        "hurry": _hurry(stem, config["package"], executorch),
        "load": load,
        "timed": timed,
        "engine_too": ", with the file of\n`ExecuTorchSpanModel` (below) and the same products of ExecuTorch" if executorch else "",
        "no_answer": NO_ANSWER if no_answer else "",
        "tolerance": f"{max(UNIT_TOLERANCE, TOLERANCE.get(config['scheme'], COARSE_TOLERANCE)):g}",
        "about_tolerance": LIMITED if config["scheme"] in TOLERANCE else COARSE,
        "more_files": _more_files(config["format"]),
        "lengths": " or ".join(map(str, config["lengths"])),
        "casing": f"{casing}, {accents}",
        "units": _units(config),
        "methods": ", ".join(f'{length}: "{method}"' for length, method in _methods(config["lengths"])),
        "executorch": tools.get("executorch", ""),
        "model_hash": model_hash,
        "max_answer_tokens": str(min(SpanOptions().max_answer_tokens, longest_safe_answer(window["doc_stride"]))),
        **{key: str(value) for key, value in window.items()},
    }


NO_ANSWER = """
This model was trained with questions that their passage does not answer: `answer(question, in: passage, allowNoAnswer: true)` lets it say so
(`isNoAnswer`).
"""

LIMITED = "That of the test is for these weights on any unit; `pocketqa verify`, whose engines round alike, may allow less."
COARSE = """That of the test is wide, since these weights move logits by design:
`pocketqa verify` says by what share of their spread, and with a little more than that share the test is sharper."""


def _hurry(stem: str, package: str, executorch: bool) -> str:
    files_of_folder = f"`vocab.txt`, `manifest.json` and `{package}`" if executorch else "`vocab.txt` and `manifest.json`"
    model = "" if executorch else f"2. Drag `{package}` into the project as well, so that Xcode compiles it. Nothing needs the class that it makes.\n"
    return (
        f"\n1. Put {files_of_folder} into a folder named `{stem}`\n"
        "   and drag it into the Xcode project as a folder reference (blue). In Xcode 16 and later, select it there and uncheck\n"
        f"   *Build Folder Contents* in the File inspector, or its files come into the app without their folder.\n{model}"
        f"{2 if executorch else 3}. Add `{SWIFT}` to the app's sources.\n"
        f"{3 if executorch else 4}. Use it, with this as the folder, which finds the files either way:\n"
        f'   `Bundle.main.url(forResource: "{stem}", withExtension: nil) ?? Bundle.main.resourceURL!`\n\n'
        f"In a target whose *Default Actor Isolation* is `MainActor`, as in new projects since Xcode 26, put `{SWIFT}` into a local package or a\n"
        "framework of its own (and import it), or set that to `nonisolated`: it would answer on the main thread, where it compiles at all.\n"
        f"The `Package.swift` of a local package needs `platforms: [{'.iOS(.v17), .macOS(.v14)' if executorch else '.iOS(.v15), .macOS(.v12)'}]`, "
        "without which its code does not compile."
    )


def _units(config: JSON) -> str:
    if config["format"] == NETWORK.format:
        return (
            "\n\nThis older type of model hands ids on as floating-point numbers, and float16, in which GPU and Neural Engine compute, holds whole\n"
            "numbers without gaps only up to 2048: use `.cpuOnly`, unless the golden vectors pass on the unit that you want."
        )
    if config["target"] == "iphone7plus":
        return "\nThe iPhone 7 Plus has no Neural Engine for Core ML: `.cpuOnly` and `.cpuAndGPU` are its choices."
    if config["layout"] == "ane":
        return "\nThis model is arranged for the Neural Engine, so it is meant for `.all` and `.cpuAndNeuralEngine`."
    return ""


def _methods(lengths: list[int]) -> list[tuple[int, str]]:
    return [(length, "forward" if len(lengths) == 1 else f"forward_{length}") for length in lengths]


def _more_files(form: str) -> str:
    if form == EXECUTORCH.format:
        return ""
    rows = "| `trace.json` | digests of what each operation computes, for `pocketqa verify` | no |\n"
    if form == NETWORK.format:
        rows += "| `program/`, `weights.json` | the program it was made from, and where its numbers went, for `pocketqa verify` | no |\n"
    return rows


def _template(name: str) -> str:
    return files("mobile_export").joinpath("swift", name).read_text(encoding="utf-8")
