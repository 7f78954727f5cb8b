"""From an opened checkpoint to a bundle: the model in its form, and the files that every bundle of a checkpoint shares."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from mobile_export.bundle import GOLDEN, TOKENIZER, VOCABULARY, Bundle, package_name, write_bundle
from mobile_export.checkpoint.checkpoints import Checkpoint
from mobile_export.checkpoint.tokenizer_files import write_tokenizer
from mobile_export.formats.coreml import Exported, export_package
from mobile_export.formats.metadata import tool_versions, window_options
from mobile_export.formats.vectors import golden_vectors
from mobile_export.targets import DEFAULT_LAYOUT, EXECUTORCH, NETWORK, Target, check_layout, check_scheme
from pocketqa.errors import FolderError
from pocketqa.features import Tokenizer
from pocketqa.types import JSON

ASSUMED = {"clean_text": True, "type": "BertNormalizer"}  # what QuestionAnswering.swift takes for granted of a tokenizer
ASSUMED_SPLITTER = "BertPreTokenizer"
ASSUMED_MODEL = {"unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100}


def export_bundle(
    checkpoint: Checkpoint,
    out: Path,
    target: Target,
    lengths: Sequence[int],
    *,
    scheme: str = "fp16",
    layout: str = DEFAULT_LAYOUT,
    replace: bool = False,
) -> tuple[Bundle, JSON]:
    """Write the bundle `out`, whole or not at all; returns it and what was checked on the way ("inputs", "outputs", "checks", "said").

    lengths: ascending, as `check_lengths` gives them.
    scheme: "fp16", int8 before iOS 16, and those of ExecuTorch; `pocketqa compress` makes the others from a float16 bundle.
    Raises OptionsError for what the target does not take, FolderError where `out` is taken, EngineError where a check fails.
    """
    form = check_scheme(target, scheme)
    check_layout(target, layout, form)
    tokenizer = tokenizer_of(checkpoint)
    settings = _tokenizer_settings(tokenizer, checkpoint.folder)
    window = window_options(max(lengths))
    checks: JSON = {}

    def make_package(path: Path) -> None:
        if form is EXECUTORCH:
            checks.update(_write_executorch(checkpoint, path, lengths, scheme))
        elif form is NETWORK:
            checks.update(_write_network(checkpoint, path, target, lengths))
        else:
            checks.update(_coreml_checks(export_package(checkpoint, path, target, lengths, layout)))

    def make_rest(folder: Path) -> None:
        (folder / VOCABULARY).write_text(checkpoint.vocabulary.text, encoding="utf-8")
        (folder / TOKENIZER).write_bytes(tokenizer)
        vectors = golden_vectors(checkpoint.model, Tokenizer(folder / TOKENIZER), window, checkpoint.no_answer, lengths)
        (folder / GOLDEN).write_text(vectors, encoding="utf-8")

    bundle = write_bundle(
        out,
        make_package,
        make_rest,
        name=checkpoint.name,
        parent=checkpoint.sha256,
        no_answer=checkpoint.no_answer,
        config={
            "target": target.name,
            "scheme": scheme,
            "layout": layout,
            "format": form.format,
            "lengths": list(lengths),
            "package": package_name(checkpoint.name, form.suffix),
            "model_type": checkpoint.model.config.model_type,
            "window": asdict(window),
            "tokenizer": settings,
            "compression": {},
        },
        tools=tool_versions(target),
        replace=replace,
    )
    return bundle, checks


def _write_executorch(checkpoint: Checkpoint, path: Path, lengths: Sequence[int], scheme: str) -> JSON:
    from mobile_export.formats.executorch import write_pte

    written = write_pte(checkpoint, lengths, path, scheme)
    shapes = [[1, length] for length in lengths]
    names = {"inputs": {"input_ids": "int32"}, "outputs": {"start_logits": "float32", "end_logits": "float32"}}
    features = {kind: [{"name": name, "dtype": dtype, "shapes": shapes} for name, dtype in group.items()] for kind, group in names.items()}
    said = [f"logits within {written.difference:.1e} of the same network in PyTorch; methods {', '.join(written.methods)}"]
    return features | {"checks": {"max_difference_from_pytorch": written.difference, "hazards": [], "warnings": []}, "said": said}


def _write_network(checkpoint: Checkpoint, path: Path, target: Target, lengths: Sequence[int]) -> JSON:
    """The 8-bit network, by way of the float16 program."""
    from mobile_export.formats.neuralnetwork import write_network

    with tempfile.TemporaryDirectory(prefix="pocketqa-export-") as workshop:
        exported = export_package(checkpoint, Path(workshop) / "program.mlpackage", target, lengths)
        checks = _coreml_checks(exported)
        write_network(exported.path, path)
    return checks


def _coreml_checks(exported: Exported) -> JSON:
    from mobile_export.interpreter.mlprogram import describe
    from mobile_export.networks.windows import FLOAT16_MAX

    description, agreement = describe(exported.path), exported.agreement
    return {
        "inputs": description["inputs"],
        "outputs": description["outputs"],
        "operations": description["operations"],
        "checks": {
            "max_difference_from_transformers": agreement.transformers,
            "epsilon_effect": agreement.epsilon,
            "psnr": agreement.psnr,
            "largest_value": agreement.largest,
            "windows_compared": agreement.inputs,
            "hazards": [],
            "warnings": list(exported.warnings),
        },
        "said": [
            f"float32 network: within {agreement.transformers:.1e} of transformers on {agreement.inputs} windows, PSNR {agreement.psnr:.0f} dB",
            f"float16-safe LayerNorm epsilon: moves logits by {agreement.epsilon:.1e}; no float16 hazard in the saved file",
            f"largest value on the way: {agreement.largest:.3g}, of the {FLOAT16_MAX:g} that float16 holds",
        ],
    }


def tokenizer_of(checkpoint: Checkpoint) -> bytes:
    """The bytes of tokenizer.json."""
    with tempfile.TemporaryDirectory(prefix="pocketqa-export-") as workshop:
        write_tokenizer(checkpoint.folder, Path(workshop), checkpoint.model.config.to_dict())
        return (Path(workshop) / TOKENIZER).read_bytes()


def _tokenizer_settings(tokenizer: bytes, folder: Path) -> JSON:
    """How text becomes WordPieces, for QuestionAnswering.swift.  Raises FolderError for a tokenizer that it does not imitate."""
    document: JSON = json.loads(tokenizer)
    normalizer, model = document.get("normalizer") or {}, document["model"]
    problems = [f"{key} {normalizer.get(key)!r}" for key, value in ASSUMED.items() if normalizer.get(key) != value]
    problems += [f"{key} {model[key]!r}" for key, value in ASSUMED_MODEL.items() if model.get(key, value) != value]
    if (splitter := (document.get("pre_tokenizer") or {}).get("type")) != ASSUMED_SPLITTER:
        problems.append(f"pre_tokenizer {splitter!r}")
    # A special token that somebody types is taken for text; any other added one is found in text before it is normalised and split.
    problems += [f"added token {added['content']!r}" for added in document.get("added_tokens") or [] if not added.get("special")]
    if problems:
        raise FolderError(
            f"Expected BERT's own tokenizer in {folder}, which the Swift code imitates, found one with {', '.join(problems)}. "
            "An app would see other tokens than the model: export a checkpoint that was trained with BERT's own."
        )
    accents = normalizer.get("strip_accents")
    return {
        "lowercase": normalizer["lowercase"],
        "strip_accents": normalizer["lowercase"] if accents is None else accents,
        "split_ideographs": normalizer["handle_chinese_chars"],
    }
