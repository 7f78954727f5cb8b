"""Open a question-answering checkpoint for export: a folder of this project, any Hugging Face folder, or a Hub name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mobile_export.checkpoint.sources import load_model, locate, read_config, read_manifest, weight_files, weights_hash
from mobile_export.checkpoint.vocabulary import Vocabulary, read_vocabulary
from mobile_export.networks.parts import check_exportable
from mobile_export.targets import MIN_LENGTH
from pocketqa.errors import CorruptFolder
from pocketqa.folders import Manifest, ModelFolder
from pocketqa.types import NoAnswer
from pocketqa.weights import repair_command

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """A question-answering model in float32 on the CPU, with what an app needs to know about it.

    sha256: of model.safetensors (where it is split: of the hex digests of its parts, in the order of their names).
    no_answer: as it was said, or from the manifest; None where there is none.
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


def open_checkpoint(source: str, no_answer: NoAnswer | None = None) -> Checkpoint:
    """Load weights, vocabulary and manifest.  Raises FolderError and its kinds.

    no_answer: what the checkpoint was trained for, in place of what its manifest says; a checkpoint from elsewhere has none.
    """
    folder = locate(source)
    config = read_config(folder, positions=MIN_LENGTH)
    weights = weight_files(folder)
    sha256 = weights_hash(weights)
    manifest = _matching_manifest(folder, sha256)
    vocabulary = read_vocabulary(folder, config)
    model = load_model(folder, config)
    check_exportable(model)  # before any work is done
    return Checkpoint(
        name=manifest.name if manifest else Path(source).resolve().name,
        folder=folder,
        model=model,
        vocabulary=vocabulary,
        sha256=sha256,
        no_answer=no_answer or (manifest.no_answer if manifest else None),
        licence=_read_licence(folder),
    )


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


def _read_licence(folder: Path) -> str | None:
    card = ModelFolder(folder).card
    if not card.is_file():
        return None
    front_matter = re.match(r"---\n(.*?)\n---", card.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    found = re.search(r"^license:[ \t]*(\S.*)$", front_matter.group(1), re.MULTILINE) if front_matter else None
    return found.group(1).strip() if found else None
