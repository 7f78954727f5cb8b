"""pocketqa package CHECKPOINT --out DIR: make the model folder that is served, from any BERT, DistilBERT or MobileBERT question-answering checkpoint.

    pocketqa package runs/student --out models/student
    pocketqa package distilbert/distilbert-base-cased-distilled-squad --out models/paper-student --json
    pocketqa package models/student --form onnx-int8 --data development.json

Leaves config.json, model.safetensors (float16), model.onnx (a graph that points into the weights), the tokenizer, golden.json and manifest.json, or
nothing at all.  A folder whose weights were written anew is repaired with: pocketqa package DIR --out DIR --force

With --form, adds a form in int8 to a model folder, in DIR/forms, once it has passed its gate on a development split (`forms.py`).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mobile_export.checkpoint.sources import (
    add_no_answer,
    load_model,
    locate,
    read_config,
    read_manifest,
    said_no_answer,
    weight_files,
    weights_hash,
)
from mobile_export.checkpoint.tokenizer_files import write_tokenizer
from mobile_export.formats.forms import DEVELOPMENT, MAX_F1_LOSS, add_options, run
from mobile_export.formats.graph import DEFAULT_OPSET, OPSETS, export_graph
from mobile_export.tools import check_installed
from pocketqa import __version__, squad
from pocketqa.arguments import verb_parser
from pocketqa.errors import CorruptFolder, EngineError, FolderError, OptionsError
from pocketqa.features import Tokenizer
from pocketqa.folders import Manifest, ModelFolder, atomic_folder, sha256_file, write_manifest
from pocketqa.golden import record
from pocketqa.reader import Reader
from pocketqa.runtimes.forms import FOLDER, read_form
from pocketqa.runtimes.onnx import OnnxRuntime
from pocketqa.types import JSON, NoAnswer, Request

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SAMPLES = Path(squad.__file__).with_name("samples.json")
GOLDEN_QUESTIONS = 8
LONGEST_GOLDEN_CONTEXT = 1500  # code points: golden questions are replayed at every start of a service
AGREEMENT = 1e-3  # largest allowed difference of a logit between PyTorch and ONNX Runtime, times the largest logit where that is above 1
TOOLS = ("torch", "transformers", "onnx", "onnxruntime", "tokenizers", "safetensors")
NEEDED = ("torch", "transformers", "safetensors", "onnx")


@dataclass(frozen=True, slots=True)
class Packaged:
    """What was made: sizes in bytes, the hash of the weights, and the largest difference of a logit between PyTorch and ONNX Runtime."""

    folder: str
    name: str
    model_hash: str
    parent: str
    parameters: int
    weight_bytes: int
    graph_bytes: int
    folder_bytes: int
    agreement: float
    golden_questions: int

    def to_json(self) -> JSON:
        """All fields, for --json."""
        return {name: getattr(self, name) for name in self.__slots__}


def main(argv: list[str]) -> int:
    """The verb `package`."""
    arguments = _parser().parse_args(argv)
    _check_options(arguments)
    no_answer = said_no_answer(arguments)
    say = partial(print, file=sys.stderr if arguments.json else sys.stdout, flush=True)
    if arguments.form:
        made_form = run(arguments, say)
        print(json.dumps(made_form.to_json()) if arguments.json else made_form.summary)
        return 0
    began = time.perf_counter()
    given = vars(arguments)
    made = package(arguments.checkpoint, arguments.out, **{key: given[key] for key in ("name", "opset", "force")}, no_answer=no_answer, say=say)
    if arguments.json:
        print(json.dumps(made.to_json()))
        return 0
    say(
        f"{made.folder}: {made.folder_bytes / 1e6:.1f} MB (weights {made.weight_bytes / 1e6:.1f} MB, graph {made.graph_bytes / 1e3:.0f} kB), "
        f"model {made.model_hash[:12]}, in {time.perf_counter() - began:.0f} s"
    )
    quoted = shlex.quote(made.folder)
    say(f"Next: pocketqa serve --student {quoted} --teacher {quoted}")
    return 0


def _check_options(arguments: argparse.Namespace) -> None:
    """Either a folder is made or a form.  Raises OptionsError."""
    if bool(arguments.out) == bool(arguments.form):
        raise OptionsError(
            "Expected --out DIR for a model folder, or --form NAME for a form of one; found " + ("both." if arguments.out else "neither.")
        )
    folders = {"--name": arguments.name, "--force": arguments.force, "--opset": arguments.opset != DEFAULT_OPSET, "--no-answer": arguments.no_answer}
    forms = {"--data": arguments.data, "--limit": arguments.limit is not None, "--seed": arguments.seed, "--split": arguments.split != DEVELOPMENT}
    forms |= {"--max-f1-loss": arguments.max_f1_loss != MAX_F1_LOSS}
    other, kind = (folders, "--form") if arguments.form else (forms, "--out")
    if given := [option for option, value in other.items() if value]:
        raise OptionsError(f"{', '.join(given)} cannot be used with {kind}.")
    if arguments.form and not arguments.data:
        raise OptionsError("--form needs --data FILE, the development split that the form is judged on.")


def _carried(source: Path, out: Path, say: Callable[[str], None]) -> Manifest | None:
    """The manifest whose name, threshold and recipe go on; one that cannot be read is only given up where the folder is being repaired in place."""
    try:
        return read_manifest(source)
    except CorruptFolder as error:
        if out.resolve() != source.resolve():
            raise
        say(f"Warning: {error} Its name, seed and no-answer threshold are lost.")
        return None


def package(
    checkpoint: str,
    out: str | Path,
    *,
    name: str | None = None,
    opset: int = DEFAULT_OPSET,
    force: bool = False,
    no_answer: NoAnswer | None = None,
    say: Callable[[str], None] = print,
) -> Packaged:
    """Make the model folder `out` from a checkpoint.  Raises FolderError and its kinds, EngineError where PyTorch and ONNX Runtime disagree.

    no_answer: what the checkpoint was trained for, in place of what its manifest says; a checkpoint from elsewhere has none.
    """
    check_installed("`pocketqa package`", *NEEDED)
    _check_out(checkpoint, Path(out), force)
    source = locate(checkpoint)
    config = read_config(source)
    carried = _carried(source, Path(out), say)
    no_answer = no_answer or (carried.no_answer if carried else None)
    files = weight_files(source)
    say(f"Reading {source}")
    model = load_model(source, config)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    say(f"{config['model_type']}, {parameters / 1e6:.1f} million parameters; rounding to float16")
    with atomic_folder(out, replace=force) as folder:
        _write_weights(model, folder)
        write_tokenizer(source, folder, config)
        say(f"Exporting the graph (opset {opset})")
        export_graph(model, folder / "model.onnx", folder / "model.safetensors", opset)
        agreement, golden = _write_golden(ModelFolder(folder), no_answer)
        say(f"PyTorch and ONNX Runtime agree within {agreement:.1e} on {golden} golden questions")
        parent = _parent(weights_hash(files), carried, repaired=Path(out).resolve() == source.resolve())
        manifest = _write_manifest(folder, name or (carried.name if carried else Path(out).resolve().name), parent, opset, carried, no_answer)
        ModelFolder(folder).verify()
        _carry_card(source, Path(out), folder, manifest.files["model.safetensors"], say)
        _carry_forms(Path(out), folder, manifest.files["model.safetensors"], say)
        sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
    return Packaged(
        folder=str(out),
        name=manifest.name,
        model_hash=manifest.files["model.safetensors"],
        parent=parent,
        parameters=parameters,
        weight_bytes=sizes["model.safetensors"],
        graph_bytes=sizes["model.onnx"],
        folder_bytes=sum(sizes.values()),
        agreement=agreement,
        golden_questions=golden,
    )


def _parser() -> argparse.ArgumentParser:
    parser = verb_parser("pocketqa package", "Make the model folder that is served from a question-answering checkpoint.")
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="a BERT, DistilBERT or MobileBERT question-answering folder, or its name on the Hugging Face Hub"
    )
    parser.add_argument("--out", metavar="DIR", help="the model folder to make")
    parser.add_argument("--name", help="name shown to people (default: that of the checkpoint's manifest, else of DIR)")
    parser.add_argument("--opset", type=int, choices=OPSETS, default=DEFAULT_OPSET, help="ONNX operator set (default: %(default)s)")
    parser.add_argument("--force", action="store_true", help="replace DIR where it is a model folder already; it may be CHECKPOINT itself")
    add_no_answer(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON line at the end, and progress on stderr")
    add_options(parser)
    return parser


def _check_out(checkpoint: str, out: Path, force: bool) -> None:
    """Before any work: refuse what would be refused at the end, and never replace a folder that holds something else than a model."""
    if not out.exists():
        return
    if not out.is_dir():
        raise FolderError(f"Expected to write a folder at {out}, found a file. Choose another place.")
    if not any(out.iterdir()):
        return
    if not force:
        again = f"pocketqa package {shlex.quote(checkpoint)} --out {shlex.quote(str(out))} --force"
        raise FolderError(f"Expected nothing at {out}, found a folder that is not empty. Choose another place, or replace it with: {again}")
    if not (out / "config.json").is_file():
        raise FolderError(f"{out} holds no model (no config.json), so --force does not replace it. Choose another place.")


def _write_weights(model: PreTrainedModel, folder: Path) -> None:
    """Round the model's parameters to float16, in place and into model.safetensors, and write its config.json."""
    import torch
    from safetensors.torch import save_file

    tensors = {}
    for name, tensor in model.state_dict().items():
        half = tensor.to(torch.float16).contiguous()
        if not torch.isfinite(half).all():
            largest = tensor.abs().max().item()
            raise CorruptFolder(f"Expected finite weights within float16 ({torch.finfo(torch.float16).max:.0f}); {name} reaches {largest:g}.")
        tensor.copy_(half)  # what is exported and compared from here on are the rounded weights
        tensors[name] = half
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = model.config.to_diff_dict()
    config.pop("_name_or_path", None)
    # Hugging Face should compute in float32, whatever the file holds; the second key is for transformers below 4.56.
    config.update(architectures=[type(model).__name__], dtype="float32", torch_dtype="float32")
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_golden(folder: ModelFolder, no_answer: NoAnswer | None) -> tuple[float, int]:
    """Answer the golden questions with PyTorch as Hugging Face opens the folder, and compare ONNX Runtime.  Returns difference and count."""
    from pocketqa.runtimes.pytorch import PyTorchRuntime

    tokenizer = Tokenizer(folder.tokenizer)
    exact, served = Reader(tokenizer, PyTorchRuntime.open(folder), no_answer=no_answer), Reader(tokenizer, OnnxRuntime(folder))
    pairs = _golden_pairs()
    encoded = exact.encode([Request(question, (context,)) for question, context in pairs])
    real = [len(window) for window in encoded.windows]
    expected, found = exact.forward(encoded), served.forward(encoded)  # (W, T)
    apart = max(
        float(np.abs(a[row, :length] - b[row, :length]).max())
        for a, b in ((expected.start, found.start), (expected.end, found.end))
        for row, length in enumerate(real)
    )
    limit = AGREEMENT * max(1.0, *(float(np.abs(logits).max()) for logits in (expected.start, expected.end)))
    if not apart <= limit:  # also when it is no number
        raise EngineError(f"Expected logits of ONNX Runtime within {limit:g} of PyTorch's, found a difference of {apart:g}. No folder was written.")
    folder.golden.write_text(record(exact, pairs).to_json(), encoding="utf-8")
    return apart, len(pairs)


def _golden_pairs() -> Sequence[tuple[str, str]]:
    """One answerable question on each of the short sample passages."""
    pairs: dict[str, str] = {}
    for example in squad.load(SAMPLES):
        if not example.is_impossible and len(example.context) <= LONGEST_GOLDEN_CONTEXT:
            pairs.setdefault(example.context, example.question)
    return [(question, context) for context, question in pairs.items()][:GOLDEN_QUESTIONS]


def _carry_card(source: Path, out: Path, folder: Path, weights: str, say: Callable[[str], None]) -> None:
    """The model card, which states the licence: that of a folder of the same weights that is replaced, since people write it by hand; else the
    checkpoint's.
    """
    before = ModelFolder(out)
    same = out.resolve() == source.resolve() or (before.weights.is_file() and sha256_file(before.weights) == weights)
    if before.card.is_file() and not same:
        say("Dropping the model card that was there: it is of other weights")
    card = before.card if same and before.card.is_file() else ModelFolder(source).card
    if card.is_file():
        shutil.copyfile(card, ModelFolder(folder).card)


def _carry_forms(out: Path, folder: Path, weights: str, say: Callable[[str], None]) -> None:
    """Keep the forms of a folder that is replaced, where they were made from the same weights."""
    for form in sorted(path for path in (out / FOLDER).glob("*") if (path / "manifest.json").is_file()):
        if read_form(form).parent == weights:
            shutil.copytree(form, folder / FOLDER / form.name)
        else:
            say(f"Dropping the form {form.name}: it was made from other weights")


def _write_manifest(folder: Path, name: str, parent: str, opset: int, carried: Manifest | None, no_answer: NoAnswer | None) -> Manifest:
    tools = {"pocketqa": __version__, "python": platform.python_version()}
    tools |= {tool: importlib.metadata.version(tool) for tool in TOOLS}
    return write_manifest(
        folder,
        kind="model",
        name=name,
        parent=parent,
        config={"precision": "float16", "opset": opset, "checkpoint": _checkpoint_config(carried)},
        commit=carried.commit if carried else None,
        seed=carried.seed if carried else None,
        no_answer=no_answer,
        tools=tools,
    )


def _parent(weights: str, carried: Manifest | None, *, repaired: bool) -> str:
    """sha256 of the weights that a folder is made from.  One whose graph alone is made again is not its own parent: it keeps the one it had."""
    if repaired and carried and carried.parent and carried.files.get("model.safetensors") == weights:
        return carried.parent
    return weights


def _checkpoint_config(carried: Manifest | None) -> JSON:
    """How the checkpoint was made; of a model folder that is packaged again, how its own checkpoint was."""
    if carried is None:
        return {}
    return carried.config if carried.kind == "checkpoint" else dict(carried.config.get("checkpoint") or {})
