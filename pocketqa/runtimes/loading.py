"""What the engines that read model.onnx share: a checked path to open, and the inputs that a graph names."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pocketqa.errors import EngineError, FolderError, IncompleteFolder
from pocketqa.folders import ModelFolder
from pocketqa.types import Batch

OUTPUTS = ("start_logits", "end_logits")


@contextlib.contextmanager
def graph_path(folder: ModelFolder) -> Iterator[Path]:
    """The real path of model.onnx, after comparing it with the weights; to be opened while the context lasts.

    Engines accept external data only below the folder of the graph, symbolic links resolved.  A folder reached through a link is no trouble once
    its path is resolved.  Where the files themselves are links (the Hub's cache does that), they are put beside one another, as hard links where
    possible, until the session is made; it needs no path afterwards.

    Raises IncompleteFolder and StaleGraph, and FolderError where there is no room to put them together.
    """
    if not folder.graph.is_file() or not folder.weights.is_file():
        raise IncompleteFolder(
            f"Expected {folder.graph.name} and {folder.weights.name} in {folder.path}, found {_present(folder)}. "
            "Make a model folder from a checkpoint with: pocketqa package CHECKPOINT --out DIR"
        )
    folder.check_graph()
    graph, weights = folder.graph.resolve(), folder.weights.resolve()
    if (graph.parent, graph.name, weights.name) == (weights.parent, folder.graph.name, folder.weights.name):
        yield graph
        return
    with contextlib.ExitStack() as stack:
        try:
            temporary = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pocketqa-"))).resolve()
            for source, name in ((graph, folder.graph.name), (weights, folder.weights.name)):
                _link_or_copy(source, temporary / name)
        except OSError as error:
            raise FolderError(
                f"The files of {folder.path} are links, so that graph and weights must be put beside one another, but the folder for temporary files "
                f"cannot take them: {error.strerror}. Set TMPDIR to a folder with room for {weights.stat().st_size:,} bytes."
            ) from None
        yield temporary / folder.graph.name


def feed(batch: Batch, names: Sequence[str]) -> dict[str, NDArray[np.int64]]:
    """The inputs (B, T) that a graph names: a DistilBERT takes no token types."""
    offered = {"input_ids": batch.ids, "attention_mask": batch.mask, "token_type_ids": batch.token_types}
    return {name: offered[name].astype(np.int64) for name in names}


def check_names(inputs: Sequence[str], outputs: Sequence[str], engine: str) -> None:
    """Raises EngineError where a graph is not one of a BERT or DistilBERT that answers questions."""
    if not {"input_ids", "attention_mask"} <= set(inputs) <= {"input_ids", "attention_mask", "token_type_ids"} or not set(OUTPUTS) <= set(outputs):
        raise EngineError(
            f"{engine}: expected a graph from input_ids, attention_mask (and token_type_ids) to {' and '.join(OUTPUTS)}, "
            f"found {', '.join(inputs)} to {', '.join(outputs)}. Make the folder with: pocketqa package CHECKPOINT --out DIR"
        )


def plain(error: BaseException) -> str:
    """The message of an engine's exception on one line: the part that says something, without its list of C++ files."""
    lines = [line.strip() for line in str(error).splitlines()]
    telling = [line for line in lines if line and not line.startswith(("Exception from ", "Check "))] or [line for line in lines if line]
    return " ".join(telling)[:400] or type(error).__name__


def _present(folder: ModelFolder) -> str:
    names = [path.name for path in (folder.graph, folder.weights) if path.is_file()]
    return f"only {names[0]}" if names else "neither"


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)
