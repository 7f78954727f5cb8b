"""Write the tokenizer files of a model folder: those of the checkpoint, or made from its vocabulary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mobile_export.sources import quiet_transformers
from pocketqa.errors import CorruptFolder, FolderError, IncompleteFolder
from pocketqa.types import JSON

FAST = "tokenizer.json"
SETTINGS = "tokenizer_config.json"
VOCABULARY = "vocab.txt"


def write_tokenizer(source: Path, target: Path, config: JSON) -> None:
    """tokenizer.json, tokenizer_config.json, special_tokens_map.json and vocab.txt, all saying the same.

    An existing tokenizer.json is kept as it is, but for truncation and padding, which are settings of a call.
    Raises IncompleteFolder, FolderError for another kind of tokenizer, CorruptFolder where the vocabulary does not fit the weights.
    """
    from transformers import BertTokenizerFast, DistilBertTokenizerFast

    if not (source / FAST).is_file() and not (source / VOCABULARY).is_file():
        raise IncompleteFolder(f"Expected a tokenizer ({FAST} or {VOCABULARY}) in {source}, found none. Copy it from the model's origin.")
    document = _read(source / FAST)
    kind = document["model"].get("type", "WordPiece") if document else "WordPiece"
    if kind != "WordPiece":
        raise FolderError(f"Expected a WordPiece tokenizer, as BERT and DistilBERT have, in {source}, found {kind!r}.")
    tokenizer_class = BertTokenizerFast if config["model_type"] == "bert" else DistilBertTokenizerFast
    with quiet_transformers():
        try:
            tokenizer = tokenizer_class.from_pretrained(source, local_files_only=True, **_casing(source, document))
        except Exception as error:  # the tokenizers library raises bare Exception
            raise CorruptFolder(f"Expected a readable tokenizer in {source}, found: {error}") from error
        tokenizer.save_pretrained(target)
    if document:
        document.update(truncation=None, padding=None)
        (target / FAST).write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if len(tokenizer) > config["vocab_size"]:
        raise CorruptFolder(
            f"{source}: the vocabulary has {len(tokenizer)} tokens, more than the {config['vocab_size']} rows of the word embeddings."
        )


def _casing(source: Path, document: JSON) -> dict[str, Any]:
    """Whether text is lower-cased, from where it is said: the fast tokenizer, else its settings, else the vocabulary itself.

    transformers assumes lower case where nothing is said, which would silently spoil a cased model.
    """
    normalizer = document.get("normalizer") or {}
    if "lowercase" in normalizer:
        return {"do_lower_case": normalizer["lowercase"], "strip_accents": normalizer.get("strip_accents")}
    if "do_lower_case" in _read(source / SETTINGS) or document:
        return {}
    words = (source / VOCABULARY).read_text(encoding="utf-8").split("\n")
    return {"do_lower_case": not any(word != word.lower() for word in words if not word.startswith("["))}


def _read(path: Path) -> JSON:
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise CorruptFolder(f"Expected readable JSON at {path}, found: {error}.") from None
