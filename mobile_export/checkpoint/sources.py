"""Find and load a question-answering checkpoint to package or export: a Hugging Face folder, or the name of one on the Hub."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import math
import re
import shlex
from collections.abc import Iterator
from logging import ERROR
from pathlib import Path
from typing import TYPE_CHECKING

from pocketqa.errors import CorruptFolder, FolderError, IncompleteFolder, OptionsError
from pocketqa.folders import Manifest, ModelFolder, sha256_file
from pocketqa.types import JSON, MAX_WINDOW_TOKENS, NoAnswer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
HUB_FILES = (
    "config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "manifest.json",
    "README.md",  # states the licence
)
MODEL_TYPES = ("bert", "distilbert", "mobilebert")
# It stops where the weights have no question-answering head: transformers would make a random one.
TO_SAFETENSORS = (
    'python -c "from transformers import AutoModelForQuestionAnswering as M, AutoTokenizer as T; '
    "m, info = M.from_pretrained('MODEL', output_loading_info=True); assert not info['missing_keys'], info['missing_keys']; "
    "m.save_pretrained('FOLDER'); T.from_pretrained('MODEL').save_pretrained('FOLDER')\""
)


def add_no_answer(parser: argparse.ArgumentParser) -> None:
    """The options that say of a checkpoint from elsewhere what the manifest says of ours."""
    words = "the checkpoint was trained with unanswerable questions, as SQuAD 2.0's are; said for those from elsewhere, since ours say it themselves"
    parser.add_argument("--no-answer", action="store_true", help=words)
    parser.add_argument("--no-answer-threshold", type=float, metavar="X", help="margin above which it says that there is no answer (default: 0)")


def said_no_answer(arguments: argparse.Namespace) -> NoAnswer | None:
    """What those options say, None where they say nothing.  Raises OptionsError."""
    threshold = arguments.no_answer_threshold
    if threshold is not None and not arguments.no_answer:
        raise OptionsError("--no-answer-threshold goes with --no-answer.")
    if threshold is not None and not math.isfinite(threshold):
        raise OptionsError(f"Expected --no-answer-threshold to be a finite number, such as 0 or 1.5; found {threshold}.")
    return NoAnswer(True, threshold) if arguments.no_answer else None


def locate(source: str) -> Path:
    """The folder of a checkpoint; one that is no folder here is fetched from the Hub.  Raises IncompleteFolder."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise IncompleteFolder(f"Expected a Hugging Face folder at {source}, found no config.json in it. Name the folder that holds the weights.")
        return folder.resolve()
    if folder.exists() or not HUB_NAME.fullmatch(source):
        found = "a file" if folder.exists() else "nothing"
        raise IncompleteFolder(f"Expected a checkpoint folder at {source}, found {found}. Name a folder with config.json and model.safetensors.")
    return _download(source)


def weight_files(folder: Path) -> list[Path]:
    """The weights of a checkpoint, usually one file.  Raises IncompleteFolder where there are none in safetensors form."""
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        other = next((name for name in ("pytorch_model.bin", "tf_model.h5", "flax_model.msgpack") if (folder / name).is_file()), None)
        found = f"only {other}, a format that is not opened here" if other else "none"
        raise IncompleteFolder(
            f"Expected model.safetensors in {folder}, found {found}. Convert PyTorch weights that you trust once with: {TO_SAFETENSORS}"
        )
    return files


def weights_hash(files: list[Path]) -> str:
    """sha256 of the weights; of several files, that of their hex digests in the order of their names."""
    if len(files) == 1:
        return sha256_file(files[0])
    return hashlib.sha256("".join(sha256_file(file) for file in files).encode()).hexdigest()


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a checkpoint or model folder, None where there is none.  Its hashes are not compared: the weights may be trained further."""
    model = ModelFolder(folder)
    return model.read_manifest() if model.manifest.is_file() else None


def read_config(folder: Path, positions: int = MAX_WINDOW_TOKENS) -> JSON:
    """config.json of a model that answers questions.  Raises CorruptFolder, FolderError.

    positions: fewest rows that its position table may have.  A model folder is served with windows of up to MAX_WINDOW_TOKENS, which whoever asks
    chooses, and no engine would survive a longer one than the table; an export has its own lengths, and is checked against them instead.
    """
    path = folder / "config.json"
    config = read_json(path)
    if not config:
        raise CorruptFolder(f"Expected a configuration in {path}, found none.")
    if "model_type" not in config and {"hidden_size", "num_hidden_layers", "intermediate_size"} <= set(config):
        config["model_type"] = "bert"  # TinyBERT as published, and BERT folders older than the field
    problems = []
    if config.get("model_type") not in MODEL_TYPES:
        problems.append(f"model_type should be {', '.join(MODEL_TYPES[:-1])} or {MODEL_TYPES[-1]}, found {config.get('model_type')!r}")
    if not isinstance(config.get("vocab_size"), int):
        problems.append(f"vocab_size should be a whole number, found {config.get('vocab_size')!r}")
    if config.get("max_position_embeddings", positions) < positions:
        problems.append(f"max_position_embeddings should be at least {positions}, found {config['max_position_embeddings']}")
    if len(config.get("id2label") or (0, 1)) != 2 or (config.get("num_labels") or 2) != 2:
        problems.append("the head should have two outputs, start and end")
    if problems:
        raise FolderError(f"Expected a BERT, DistilBERT or MobileBERT that answers questions in {folder}, but {'; '.join(problems)}.")
    return config


def read_json(file: Path) -> JSON:
    """The object in a JSON file, empty where there is no file.  Raises CorruptFolder."""
    if not file.is_file():
        return {}
    try:
        return dict(json.loads(file.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise CorruptFolder(f"Expected readable JSON at {file}, found: {error}.") from None


def load_model(folder: Path, config: JSON) -> PreTrainedModel:
    """The model in float32 and evaluation mode, with attention written out, as what exports are compared with.  Raises FolderError and its kinds."""
    from transformers import CONFIG_MAPPING, AutoModelForQuestionAnswering

    try:
        with quiet_transformers():
            model, loading = AutoModelForQuestionAnswering.from_pretrained(
                folder,
                config=CONFIG_MAPPING[config["model_type"]].from_dict(config | {"return_dict": True, "torchscript": False}),
                use_safetensors=True,
                attn_implementation="eager",
                output_loading_info=True,
                local_files_only=True,
            )
    except Exception as error:  # OSError, ValueError, RuntimeError, SafetensorError: the library's own tree has no root
        raise CorruptFolder(
            f"Expected weights of a {config['model_type']} in {folder} that fit its config.json, found: {_first_line(error)}"
        ) from error
    _check_complete(folder, sorted(loading["missing_keys"]))
    _check_used(folder, sorted(loading["unexpected_keys"]), model.base_model_prefix)
    loaded: PreTrainedModel = model.float().eval()
    return loaded


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """transformers without its log lines below errors; what they warn of is checked here."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity(ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _check_complete(folder: Path, missing: list[str]) -> None:
    if any(name.startswith("qa_outputs.") for name in missing):
        raise FolderError(
            f"Expected a model that answers questions in {folder}, found one without the question-answering head (qa_outputs). "
            f"Train it first with: pocketqa finetune {shlex.quote(str(folder))} --out DIR"
        )
    if missing:
        raise CorruptFolder(
            f"Expected all weights in {folder}; {len(missing)} are missing: {', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}."
        )


def _check_used(folder: Path, unused: list[str], prefix: str) -> None:
    """Refuse weights of the encoder that the model has no place for; heads of other tasks, poolers and counters of positions have none either."""
    lost = [name for name in unused if name.startswith(f"{prefix}.") and not any(part in name for part in ("pooler.", "position_ids"))]
    if lost:
        raise CorruptFolder(
            f"Expected a {prefix} whose weights all have a place in its config.json, in {folder}; {len(lost)} have none: {', '.join(lost[:3])}"
            f"{', ...' if len(lost) > 3 else ''}. Merge adapters first (PEFT: merge_and_unload), or correct the number of layers."
        )


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(HUB_FILES)))
    except (OSError, ValueError) as error:  # every error of the Hub's client is one of the two
        raise IncompleteFolder(
            f"There is no folder {name} here, and the Hugging Face Hub gave no model of that name: {_first_line(error)} "
            "Name a local folder, or try again with the network."
        ) from error


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
