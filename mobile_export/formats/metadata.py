"""What a package says about itself: descriptions that Xcode shows, and keys that an app reads (the vocabulary above all).

Keys are `pocketqa.<name>`; every value is text.  `FORMAT` is raised when one changes its meaning.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobile_export.targets import DEFAULT_LAYOUT, Target
from pocketqa import __version__
from pocketqa.types import WindowOptions

if TYPE_CHECKING:
    from mobile_export.checkpoint.checkpoints import Checkpoint

FORMAT = "1"
PREFIX = "pocketqa."
INPUT, START, END = "input_ids", "start_logits", "end_logits"
PREVIEW = {"com.apple.coreml.model.preview.type": "bertQA"}
"""Xcode's preview for question answering (coremltools guide, "Xcode Model Preview Types": it takes no parameters).  Which inputs the preview feeds
is documented nowhere; Apple's own BERTSQUADFP16 has wordIDs and wordTypes.  The contract here is ours: one input, `input_ids`."""


def window_options(length: int) -> WindowOptions:
    """How an app should cut passages into windows of `length` tokens: the BERT SQuAD recipe at 384, in the same proportions below."""
    return WindowOptions(max_tokens=length, doc_stride=min(128, length // 3), max_question_tokens=min(64, length // 4))


def write_metadata(
    specification: Any, checkpoint: Checkpoint, target: Target, lengths: Sequence[int], layout: str = DEFAULT_LAYOUT, scheme: str = "fp16"
) -> None:
    """Fill the description of a Core ML `Model` protobuf, replacing what the converter put there (its date of conversion among it)."""
    description = specification.description
    for feature in (*description.input, *description.output):
        feature.shortDescription = _feature_text(feature.name, checkpoint, lengths)
    about = description.metadata
    about.shortDescription = (
        f"Extractive question answering ({checkpoint.model.config.model_type}): finds the answer to a question in a passage. "
        f"One input, the token ids of a window `[CLS] question [SEP] passage [SEP]`; the answer is the span of passage tokens i..j with the "
        f"greatest {START}[i] + {END}[j]."
    )
    about.author = f"Exported from {checkpoint.name} by PocketQA {__version__}"
    about.license = checkpoint.licence or "Not stated by the checkpoint"
    about.versionString = f"{__version__}+{checkpoint.sha256[:12]}"
    about.userDefined.clear()
    about.userDefined.update(PREVIEW | user_metadata(checkpoint, target, lengths, layout, scheme))


def carried_metadata(parent: Path, scheme: str) -> Callable[[Any], None]:
    """What fills the description of a model made from another: that of the specification file `parent`, with its own scheme."""
    from coremltools.proto import Model_pb2

    described: Any = Model_pb2.Model()
    described.ParseFromString(parent.read_bytes())

    def fill(specification: Any) -> None:
        texts = {feature.name: feature.shortDescription for feature in (*described.description.input, *described.description.output)}
        for feature in (*specification.description.input, *specification.description.output):
            feature.shortDescription = texts[feature.name]
        specification.description.metadata.CopyFrom(described.description.metadata)
        specification.description.metadata.userDefined[f"{PREFIX}scheme"] = scheme

    return fill


def user_metadata(checkpoint: Checkpoint, target: Target, lengths: Sequence[int], layout: str, scheme: str) -> dict[str, str]:
    """The keys for apps and for `pocketqa verify`."""
    vocabulary, config = checkpoint.vocabulary, checkpoint.model.config
    windows = window_options(max(lengths))
    values = {
        "format": FORMAT,
        "name": checkpoint.name,
        "model_type": config.model_type,
        "target": target.name,
        "layout": layout,
        "scheme": scheme,
        "precision": "float16",
        "lengths": ",".join(map(str, lengths)),
        "max_tokens": str(windows.max_tokens),
        "doc_stride": str(windows.doc_stride),
        "max_question_tokens": str(windows.max_question_tokens),
        "pad_id": str(vocabulary.markers.pad),
        "cls_id": str(vocabulary.cls_id),
        "sep_id": str(vocabulary.markers.sep),
        "lowercase": json.dumps(vocabulary.lowercase),
        "vocabulary": vocabulary.text,
        "vocabulary_sha256": hashlib.sha256(vocabulary.text.encode()).hexdigest(),
        "checkpoint_sha256": checkpoint.sha256,
        "no_answer": json.dumps(asdict(checkpoint.no_answer) if checkpoint.no_answer else None, sort_keys=True),
        "tools": json.dumps(tool_versions(target), sort_keys=True),
    }
    return {PREFIX + key: value for key, value in values.items()}


def tool_versions(target: Target) -> dict[str, str]:
    """Versions that an export for the target depends on: ExecuTorch does without coremltools, which not every system has."""
    engine = "coremltools" if target.coreml else "executorch"
    packages = {name: version(name) for name in (engine, "numpy", "torch", "transformers")}
    return packages | {"pocketqa": __version__, "python": platform.python_version()}


def _feature_text(name: str, checkpoint: Checkpoint, lengths: Sequence[int]) -> str:
    if name == INPUT:
        markers = checkpoint.vocabulary.markers
        return (
            f"Token ids (1, T) of `[CLS] question [SEP] passage [SEP]`, padded with {markers.pad} to T = {' or '.join(map(str, lengths))}. "
            f"[CLS] is {checkpoint.vocabulary.cls_id}, [SEP] is {markers.sep}. Attention mask and token types are derived from the ids."
        )
    place = "first" if name == START else "last"
    return f"Logits (1, T): how likely each token is the {place} of the answer, before any softmax. Only those of passage tokens mean anything."
