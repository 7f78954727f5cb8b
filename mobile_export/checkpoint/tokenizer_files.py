"""Write the tokenizer files of a model folder: those of the checkpoint, or made from its vocabulary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mobile_export.checkpoint.sources import quiet_transformers, read_json
from mobile_export.checkpoint.vocabulary import FAST, NORMALIZER, read_vocabulary
from pocketqa.errors import CorruptFolder
from pocketqa.types import JSON


def write_tokenizer(source: Path, target: Path, config: JSON) -> None:
    """tokenizer.json, tokenizer_config.json, special_tokens_map.json and vocab.txt, all saying the same.

    An existing tokenizer.json is kept as it is, but for truncation and padding, which are settings of a call.
    Raises what `read_vocabulary` raises.
    """
    from transformers import BertTokenizerFast, DistilBertTokenizerFast, MobileBertTokenizerFast

    kinds = {"bert": BertTokenizerFast, "distilbert": DistilBertTokenizerFast, "mobilebert": MobileBertTokenizerFast}
    document = read_json(source / FAST)
    casing: dict[str, Any] = {"do_lower_case": read_vocabulary(source, config).lowercase}
    for setting, key in NORMALIZER.items():
        if key != "lowercase" and key in (document.get("normalizer") or {}):
            casing[setting] = document["normalizer"][key]
    with quiet_transformers():
        try:
            tokenizer = kinds[config["model_type"]].from_pretrained(source, local_files_only=True, **casing)
        except Exception as error:  # the tokenizers library raises bare Exception
            raise CorruptFolder(f"Expected a readable tokenizer in {source}, found: {error}") from error
        tokenizer.save_pretrained(target)
    if document:
        document.update(truncation=None, padding=None)
        (target / FAST).write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
