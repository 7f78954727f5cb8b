"""Models from a configuration alone: the right shapes with seeded random weights, for times and sizes where no trained weights are at hand.

The time of a dense forward pass and the bytes of uncompressed weights do not depend on the values of the parameters.  What is made here answers
nothing; it has no golden questions and no manifest, so that it cannot be served by mistake.
"""

from __future__ import annotations

import json
import math
import shutil
import string
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobile_export.checkpoint.tokenizer_files import write_tokenizer
from mobile_export.formats.graph import DEFAULT_OPSET, export_graph
from pocketqa.answer import DEFAULT_MODEL
from pocketqa.types import JSON
from pocketqa.weights import safetensors_header

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
VOCABULARY_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt")
BUNDLED = Path(__file__).resolve().parents[2] / DEFAULT_MODEL


@dataclass(frozen=True, slots=True)
class Geometry:
    """An architecture by name.  `config` holds what differs from the defaults of transformers' configuration class for `model_type`."""

    name: str
    model_type: str
    config: JSON = field(default_factory=dict)


BERT_BASE = Geometry("BERT-base", "bert")  # the defaults of BertConfig are those of bert-base-uncased
DISTILBERT = Geometry("DistilBERT", "distilbert")  # likewise distilbert-base-uncased


def build(geometry: Geometry, seed: int = 0) -> PreTrainedModel:
    """The question-answering model of transformers with seeded random float32 weights, in evaluation mode.

    Inside `with torch.device("meta")` it has shapes and no values.
    """
    import torch
    from transformers import AutoConfig, AutoModelForQuestionAnswering

    kind: Any = AutoModelForQuestionAnswering
    config = AutoConfig.for_model(geometry.model_type, **geometry.config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind.from_config(config, attn_implementation="eager")
        if geometry.model_type == "mobilebert":
            _widen_queries(model)
    made: PreTrainedModel = model.eval()
    return made


def _widen_queries(model: Any) -> None:
    """Let queries and keys of a MobileBERT that has neither kind of bottleneck for them read what enters the layer, as in Google's code (IB-BERT).

    transformers gives them the width of the bottleneck whatever the configuration says, and then cannot run.
    """
    from torch import nn

    config = model.config
    if config.use_bottleneck_attention or config.key_query_shared_bottleneck:
        return
    for layer in model.mobilebert.encoder.layer:
        attention = layer.attention.self
        for name in ("query", "key"):
            linear = nn.Linear(config.hidden_size, attention.all_head_size)
            nn.init.normal_(linear.weight, std=config.initializer_range)
            nn.init.zeros_(linear.bias)
            setattr(attention, name, linear)


def make_folder(geometry: Geometry, folder: str | Path, *, graph: bool = True, seed: int = 0, vocabulary: Path | None = None) -> Path:
    """Write config.json, model.safetensors (float16), the tokenizer and, with `graph`, model.onnx to a folder, and return it.

    vocabulary: a folder whose tokenizer is taken; by default that of the bundled student in a checkout, else single letters: any vocabulary fills
    windows of a wanted length, and the embedding table has the rows that the configuration says either way.
    """
    import torch
    from safetensors.torch import save_file

    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    model = build(geometry, seed)
    tensors = {name: tensor.to(torch.float16).contiguous() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(tensors[name])  # the graph points into the float16 file, so the model takes its values
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    config = model.config.to_diff_dict()
    config.update(architectures=[type(model).__name__], dtype="float32", torch_dtype="float32")
    (path / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    _write_vocabulary(path, int(model.config.vocab_size), vocabulary or BUNDLED)
    if graph:
        export_graph(model, path / "model.onnx", path / "model.safetensors", DEFAULT_OPSET)
    return path


def parameters_of(weights: Path) -> int:
    """Number of parameters in a safetensors file."""
    return sum(math.prod(entry.shape) for entry in safetensors_header(weights).values())


def _write_vocabulary(folder: Path, rows: int, source: Path) -> None:
    """The tokenizer of `source` where there is one that fits; else letters, digits and signs, alone and as continuations."""
    if (source / VOCABULARY_FILES[0]).is_file() and len(json.loads((source / VOCABULARY_FILES[0]).read_bytes())["model"]["vocab"]) <= rows:
        for name in VOCABULARY_FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)
        return
    letters = string.ascii_lowercase + string.digits + string.punctuation
    tokens = [*SPECIAL, *letters, *(f"##{letter}" for letter in string.ascii_lowercase + string.digits)]
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens[:rows]), encoding="utf-8")
    write_tokenizer(folder, folder, {"model_type": "bert", "vocab_size": rows})
