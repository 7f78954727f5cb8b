"""Open a question-answering checkpoint for export: a folder of this project, any Hugging Face folder, or a Hub name."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobile_export.network import Markers, parts_of
from mobile_export.sources import load_model, locate, read_config, read_manifest, weight_files, weights_hash
from pocketqa.errors import CorruptFolder, FolderError, IncompleteFolder
from pocketqa.folders import Manifest, ModelFolder
from pocketqa.types import JSON, NoAnswer
from pocketqa.weights import repair_command

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SPECIAL_TOKENS = {"pad_token": "[PAD]", "sep_token": "[SEP]", "cls_token": "[CLS]"}


@dataclass(frozen=True, slots=True, eq=False)
class Vocabulary:
    """The WordPieces in the order of their ids, and how text becomes them."""

    tokens: tuple[str, ...]
    lowercase: bool
    markers: Markers
    cls_id: int

    @property
    def text(self) -> str:
        """One token a line, as in vocab.txt."""
        return "\n".join(self.tokens) + "\n"


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """A question-answering model in float32 on the CPU, with what an app needs to know about it.

    sha256: of model.safetensors (where it is split: of the hex digests of its parts, in the order of their names).
    no_answer: from the manifest, None where there is none.
    licence: as the front matter of its model card (README.md) states it.
    """

    name: str
    folder: Path
    model: PreTrainedModel
    vocabulary: Vocabulary
    sha256: str
    no_answer: NoAnswer | None
    licence: str | None

    @property
    def positions(self) -> int:
        """Rows of the position table, the longest window it takes."""
        return int(self.model.config.max_position_embeddings)


def open_checkpoint(source: str) -> Checkpoint:
    """Load weights, vocabulary and manifest.  Raises FolderError and its kinds."""
    folder = locate(source)
    config = read_config(folder)
    weights = weight_files(folder)
    sha256 = weights_hash(weights)
    manifest = _matching_manifest(folder, sha256)
    vocabulary = read_vocabulary(folder, config)
    model = load_model(folder, config)
    parts_of(model)  # refuses variants that are not exported before any work is done
    return Checkpoint(
        name=manifest.name if manifest else Path(source).resolve().name,
        folder=folder,
        model=model,
        vocabulary=vocabulary,
        sha256=sha256,
        no_answer=manifest.no_answer if manifest else None,
        licence=_read_licence(folder),
    )


def read_vocabulary(folder: Path, config: JSON) -> Vocabulary:
    """The tokens by id, from tokenizer.json or else vocab.txt.  Raises FolderError and its kinds where they do not fit the model."""
    tokenizer = _read_json(folder / "tokenizer.json")
    settings = _read_json(folder / "tokenizer_config.json")
    if tokenizer:
        tokens = _tokens_of(folder, tokenizer)
    elif (folder / "vocab.txt").is_file():
        tokens = tuple((folder / "vocab.txt").read_text(encoding="utf-8").removesuffix("\n").split("\n"))
    else:
        raise IncompleteFolder(f"Expected tokenizer.json or vocab.txt in {folder}, found neither. Copy it from the model's origin.")
    if len(tokens) > config["vocab_size"]:
        raise CorruptFolder(f"{folder}: the vocabulary has {len(tokens)} tokens, more than the {config['vocab_size']} rows of the word embeddings.")
    ids = {name: _id_of(folder, tokens, settings.get(name, default)) for name, default in SPECIAL_TOKENS.items()}
    if config.get("pad_token_id", 0) != ids["pad_token"]:
        raise CorruptFolder(
            f"{folder}: config.json says pad_token_id {config.get('pad_token_id', 0)}, but the vocabulary has its padding token at "
            f"{ids['pad_token']}. The exported graph knows padding by this id; correct config.json."
        )
    return Vocabulary(tokens, _is_lowercase(tokenizer, settings, tokens), Markers(ids["pad_token"], ids["sep_token"]), ids["cls_token"])


def _matching_manifest(folder: Path, sha256: str) -> Manifest | None:
    """The manifest where there is one.  Raises CorruptFolder where the weights are not those that it names."""
    manifest = read_manifest(folder)
    weights = ModelFolder(folder).weights
    expected = manifest.files.get(weights.name) if manifest else None
    if expected not in (None, sha256):
        raise CorruptFolder(
            f"{weights} differs from its manifest: expected sha256 {expected}, found {sha256}. Copy the folder again; "
            f"or, if the change is meant, make it again with: {repair_command(folder)}"
        )
    return manifest


def _tokens_of(folder: Path, tokenizer: JSON) -> tuple[str, ...]:
    model = tokenizer.get("model", {})
    if model.get("type", "WordPiece") != "WordPiece" or not isinstance(model.get("vocab"), dict):
        raise FolderError(f"Expected a WordPiece tokenizer, as BERT and DistilBERT have, in {folder}, found {model.get('type')!r}.")
    by_id = {number: token for token, number in model["vocab"].items()}
    by_id |= {added["id"]: added["content"] for added in tokenizer.get("added_tokens", [])}
    if sorted(by_id) != list(range(len(by_id))):
        raise CorruptFolder(f"{folder}/tokenizer.json: expected ids without gaps, found {len(by_id)} tokens with ids up to {max(by_id, default=0)}.")
    return tuple(by_id[number] for number in range(len(by_id)))


def _id_of(folder: Path, tokens: Sequence[str], setting: Any) -> int:
    token = setting["content"] if isinstance(setting, dict) else setting  # tokenizer_config.json holds the token or its record
    if token not in tokens:
        raise CorruptFolder(f"{folder}: expected the special token {token!r} in the vocabulary, found none.")
    return tokens.index(token)


def _is_lowercase(tokenizer: JSON, settings: JSON, tokens: Sequence[str]) -> bool:
    """From where it is said: the fast tokenizer, else its settings, else the vocabulary itself."""
    normalizer = tokenizer.get("normalizer") or {}
    said = normalizer.get("lowercase", settings.get("do_lower_case"))
    return bool(said) if said is not None else not any(token != token.lower() for token in tokens if not token.startswith("["))


def _read_licence(folder: Path) -> str | None:
    card = ModelFolder(folder).card
    if not card.is_file():
        return None
    front_matter = re.match(r"---\n(.*?)\n---", card.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    found = re.search(r"^license:[ \t]*(\S.*)$", front_matter.group(1), re.MULTILINE) if front_matter else None
    return found.group(1).strip() if found else None


def _read_json(file: Path) -> JSON:
    if not file.is_file():
        return {}
    try:
        return dict(json.loads(file.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise CorruptFolder(f"Expected readable JSON at {file}, found: {error}.") from None
