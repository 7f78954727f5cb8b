"""The vocabulary of a checkpoint: its WordPieces by id, its special tokens, and whether it lowers case, from whichever of its files say so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobile_export.checkpoint.sources import read_json
from pocketqa.errors import CorruptFolder, FolderError, IncompleteFolder
from pocketqa.types import JSON

FAST, SETTINGS, PLAIN = "tokenizer.json", "tokenizer_config.json", "vocab.txt"
CLASSES = ("BertTokenizer", "DistilBertTokenizer", "MobileBertTokenizer", "PreTrainedTokenizer")
NORMALIZER = {"do_lower_case": "lowercase", "strip_accents": "strip_accents", "tokenize_chinese_chars": "handle_chinese_chars"}  # setting -> its key
SPECIAL_TOKENS = {"pad_token": "[PAD]", "sep_token": "[SEP]", "cls_token": "[CLS]"}


@dataclass(frozen=True, slots=True)
class Markers:
    """The ids of the special tokens.  An exported graph looks for the first two."""

    pad: int
    sep: int
    cls: int


@dataclass(frozen=True, slots=True, eq=False)
class Vocabulary:
    """The WordPieces in the order of their ids, and how text becomes them."""

    tokens: tuple[str, ...]
    lowercase: bool
    markers: Markers

    @property
    def cls_id(self) -> int:
        """The id of [CLS]."""
        return self.markers.cls

    @property
    def text(self) -> str:
        """One token a line, as in vocab.txt."""
        return "\n".join(self.tokens) + "\n"


def read_vocabulary(folder: Path, config: JSON) -> Vocabulary:
    """The tokens by id, from tokenizer.json or else vocab.txt.

    Raises IncompleteFolder where there is neither, FolderError for another kind of tokenizer, CorruptFolder where they do not fit the model.
    """
    document, settings = read_json(folder / FAST), read_json(folder / SETTINGS)
    _check_kind(folder, document, settings)
    _check_agreement(folder, document.get("normalizer") or {}, settings)
    if document:
        tokens = _tokens_of(folder, document)
    elif (folder / PLAIN).is_file():
        tokens = tuple((folder / PLAIN).read_text(encoding="utf-8").removesuffix("\n").split("\n"))
    else:
        raise IncompleteFolder(f"Expected a tokenizer ({FAST} or {PLAIN}) in {folder}, found neither. Copy it from the model's origin.")
    if len(tokens) > config["vocab_size"]:
        raise CorruptFolder(f"{folder}: the vocabulary has {len(tokens)} tokens, more than the {config['vocab_size']} rows of the word embeddings.")
    pad, sep, cls = (_id_of(folder, tokens, settings.get(name, default)) for name, default in SPECIAL_TOKENS.items())
    if config.get("pad_token_id", 0) != pad:
        raise CorruptFolder(
            f"{folder}: config.json says pad_token_id {config.get('pad_token_id', 0)}, but the vocabulary has its padding token at {pad}. "
            "The exported graph knows padding by this id; correct config.json."
        )
    return Vocabulary(tokens, _is_lowercase(document, settings, tokens), Markers(pad, sep, cls))


def _check_kind(folder: Path, document: JSON, settings: JSON) -> None:
    """Refuse a tokenizer whose words are cut otherwise than BERT's, which a vocab.txt alone does not show."""
    kind = str(settings.get("tokenizer_class") or "BertTokenizer").removesuffix("Fast")
    if not document and (kind not in CLASSES or any(settings.get(name) for name in ("word_tokenizer_type", "subword_tokenizer_type"))):
        raise FolderError(
            f"Expected a tokenizer of BERT's in {folder}, found {settings.get('tokenizer_class')} in {SETTINGS}, which cuts words otherwise. "
            f"A {FAST} that does so by itself would be taken for packaging, and no app could imitate it."
        )


def _check_agreement(folder: Path, normalizer: JSON, settings: JSON) -> None:
    """Refuse files that contradict each other: transformers goes by tokenizer_config.json, and who reads tokenizer.json alone gets other tokens."""
    if normalizer.get("type") != "BertNormalizer":
        return
    said = {key: settings[name] for name, key in NORMALIZER.items() if isinstance(settings.get(name), bool)}
    accents = normalizer.get("strip_accents")
    effective = {**normalizer, "strip_accents": normalizer.get("lowercase") if accents is None else accents}
    if wrong := [f"{key} {effective.get(key)} and {value}" for key, value in said.items() if effective.get(key) not in (None, value)]:
        raise CorruptFolder(
            f"{folder}: {FAST} and {SETTINGS} contradict each other ({'; '.join(wrong)}), so that the model would read other tokens than it learnt. "
            "Correct the one that is wrong."
        )


def _tokens_of(folder: Path, document: JSON) -> tuple[str, ...]:
    model = document.get("model", {})
    if model.get("type", "WordPiece") != "WordPiece" or not isinstance(model.get("vocab"), dict):
        raise FolderError(f"Expected a WordPiece tokenizer, as BERT, DistilBERT and MobileBERT have, in {folder}, found {model.get('type')!r}.")
    by_id = {number: token for token, number in model["vocab"].items()}
    by_id |= {added["id"]: added["content"] for added in document.get("added_tokens", [])}
    if sorted(by_id) != list(range(len(by_id))):
        raise CorruptFolder(f"{folder / FAST}: expected ids without gaps, found {len(by_id)} tokens with ids up to {max(by_id, default=0)}.")
    return tuple(by_id[number] for number in range(len(by_id)))


def _id_of(folder: Path, tokens: Sequence[str], setting: Any) -> int:
    token = setting["content"] if isinstance(setting, dict) else setting  # tokenizer_config.json holds the token or its record
    if token not in tokens:
        raise CorruptFolder(f"{folder}: expected the special token {token!r} in the vocabulary, found none.")
    return tokens.index(token)


def _is_lowercase(document: JSON, settings: JSON, tokens: Sequence[str]) -> bool:
    """From where it is said: the fast tokenizer, else its settings, else the vocabulary itself.

    transformers assumes lower case where nothing is said, which would silently spoil a cased model.
    """
    normalizer = document.get("normalizer") or {}
    said = normalizer.get("lowercase", settings.get("do_lower_case"))
    return bool(said) if said is not None else not any(token != token.lower() for token in tokens if not token.startswith("["))
