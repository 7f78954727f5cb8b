"""Tiny random checkpoints and data files, made in code, for tests that run the real commands whole.

Every folder is a complete Hugging Face folder (config.json, model.safetensors, tokenizer.json, ...), so nothing is downloaded and nothing is patched.
The weights are random but not small: logits differ clearly from position to position, so that two engines which disagree are seen to disagree.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SAMPLES = Path(__file__).parent.parent / "pocketqa" / "samples.json"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
HIDDEN = 32
HEADS = 2
POSITIONS = 512
INITIALIZER_RANGE = 0.3  # against 0.02 of real models: with 32 dimensions and no training, 0.02 would leave all logits nearly equal


def tiny_bert(
    path: Path,
    layers: int = 2,
    cased: bool = False,
    seed: int = 0,
    vocabulary: Sequence[str] | None = None,
    hidden: int = HIDDEN,
    positions: int = POSITIONS,
) -> Path:
    """Write a random BertForQuestionAnswering folder to `path` and return it."""
    from transformers import BertForQuestionAnswering

    return _save(path, lambda size: BertForQuestionAnswering(_bert_config(size, layers, hidden, positions)), cased, seed, vocabulary)


def tiny_distilbert(
    path: Path, layers: int = 2, cased: bool = False, seed: int = 0, vocabulary: Sequence[str] | None = None, hidden: int = HIDDEN
) -> Path:
    """Write a random DistilBertForQuestionAnswering folder to `path` and return it."""
    from transformers import DistilBertConfig, DistilBertForQuestionAnswering

    def make(size: int) -> PreTrainedModel:
        config = DistilBertConfig(
            vocab_size=size,
            dim=hidden,
            hidden_dim=4 * hidden,
            n_layers=layers,
            n_heads=HEADS,
            max_position_embeddings=POSITIONS,
            initializer_range=INITIALIZER_RANGE,
        )
        return DistilBertForQuestionAnswering(config)

    return _save(path, make, cased, seed, vocabulary)


# What a configuration of MobileBERT may change, by name: settings for `tiny_mobilebert`.
MOBILEBERT_VARIANTS: dict[str, dict[str, Any]] = {
    "LayerNorm": {"normalization_type": "layer_norm"},
    "GELU": {"hidden_act": "gelu"},
    "one network a layer": {"num_feedforward_networks": 1},
    "attention in the bottleneck": {"use_bottleneck_attention": True},
    "no bottleneck": {"use_bottleneck": False},
    "single tokens": {"trigram_input": False},
    "single tokens, no transformation": {"trigram_input": False, "embedding_size": 32},
}


def tiny_mobilebert(path: Path, layers: int = 2, cased: bool = False, seed: int = 0, vocabulary: Sequence[str] | None = None, **config: Any) -> Path:
    """Write a random MobileBertForQuestionAnswering folder to `path` and return it; `config` replaces settings of its MobileBertConfig."""
    from transformers import MobileBertConfig, MobileBertForQuestionAnswering

    settings: dict[str, Any] = {
        "hidden_size": HIDDEN,
        "embedding_size": HIDDEN // 2,
        "intra_bottleneck_size": HIDDEN // 2,
        "intermediate_size": HIDDEN,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_feedforward_networks": 3,
        "initializer_range": 0.2,  # without LayerNorm, INITIALIZER_RANGE would let logits grow to thousands
    }
    return _save(path, lambda size: MobileBertForQuestionAnswering(MobileBertConfig(vocab_size=size, **(settings | config))), cased, seed, vocabulary)


def tiny_tinybert(path: Path, layers: int = 2, cased: bool = False, seed: int = 0, vocabulary: Sequence[str] | None = None) -> Path:
    """Write a random BERT folder as TinyBERT's are published to `path` and return it: no model_type, and the `fit_dense` of its distillation."""
    import torch
    from safetensors.torch import load_file, save_file

    tiny_bert(path, layers, cased, seed, vocabulary)
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    for name in ("model_type", "architectures"):
        del config[name]
    config |= {"emb_size": HIDDEN, "cell": {}, "structure": [], "pre_trained": "", "training": ""}
    (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    weights = load_file(path / "model.safetensors") | {"fit_dense.weight": torch.ones(2 * HIDDEN, HIDDEN), "fit_dense.bias": torch.ones(2 * HIDDEN)}
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    return path


def tiny_base(path: Path, layers: int = 2, cased: bool = False, seed: int = 0, vocabulary: Sequence[str] | None = None, hidden: int = HIDDEN) -> Path:
    """Write a random bare BertModel folder (pooler, no task head), as a pre-trained encoder is published, to `path` and return it."""
    from transformers import BertModel

    return _save(path, lambda size: BertModel(_bert_config(size, layers, hidden)), cased, seed, vocabulary)


def sample_vocabulary(cased: bool = False, words: int = 60) -> list[str]:
    """WordPieces for the project's own samples: special tokens, every letter and digit alone and as a continuation, punctuation, frequent words."""
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer

    normalizer, splitter = BertNormalizer(lowercase=not cased), BertPreTokenizer()
    counts: Counter[str] = Counter()
    for text in _sample_texts():
        counts.update(piece for piece, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    latin = sorted({letter for piece in counts for letter in piece if letter.isascii()})
    others = sorted({letter for piece in counts for letter in piece if letter.isalpha() and not letter.isascii()})
    continued = [f"##{letter}" for letter in (*latin, *others) if letter.isalnum()]
    frequent = [piece for piece, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if len(piece) > 1 and piece.isascii()]
    return [*SPECIAL, *latin, *others, *continued, *frequent[:words]]


def tiny_squad(path: Path, paragraphs: int = 6, questions: int = 3, impossible: bool = False, seed: int = 0) -> Path:
    """Write a SQuAD file of made-up sentences ("The red lamp of Anna is in the kitchen.") and return its path.

    Every article has two paragraphs, so that "a question put to another paragraph of the same article" exists.  With `impossible`, each paragraph
    has one more question, without an answer.
    """
    import random

    pick = random.Random(seed)
    articles: dict[str, list[dict[str, Any]]] = {}
    for number in range(paragraphs):
        title = f"House {number // 2}"
        articles.setdefault(title, []).append(_tiny_paragraph(pick, f"{path.stem}-{number}", questions, impossible))
    data = [{"title": title, "paragraphs": entries} for title, entries in articles.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"version": "v2.0" if impossible else "1.1", "data": data}), encoding="utf-8")
    return path


def flip(path: Path) -> None:
    """Turn one bit of a file, near its end; done twice, the file is as it was."""
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)


def _tiny_paragraph(pick: Any, prefix: str, questions: int, impossible: bool) -> dict[str, Any]:
    names = pick.sample(["Anna", "Bruno", "Chen", "Dilan", "Elif", "Farid", "Greta", "Hugo"], questions + 1)
    facts = []
    for name in names:
        colour, thing, room = (
            pick.choice(["red", "blue", "green", "white"]),
            pick.choice(["lamp", "chair", "kettle", "coat"]),
            pick.choice(["the kitchen", "the hall", "the attic", "the old garden shed"]),
        )
        facts.append((name, thing, room, f"The {colour} {thing} of {name} is in {room}."))
    absent = facts.pop()
    context = " ".join(sentence for *_, sentence in facts)
    entries: list[dict[str, Any]] = []
    for index, (name, thing, room, sentence) in enumerate(facts):
        start = context.index(sentence) + sentence.rindex(room)
        answers = [{"text": room, "answer_start": start}]
        entries.append({"id": f"{prefix}-{index}", "question": f"Where is the {thing} of {name}?", "answers": answers})
    if impossible:
        entries.append({"id": f"{prefix}-none", "question": f"Where is the {absent[1]} of {absent[0]}?", "answers": [], "is_impossible": True})
    return {"context": context, "qas": entries}


def _sample_texts() -> list[str]:
    document = json.loads(SAMPLES.read_text(encoding="utf-8"))
    passages = [paragraph for article in document["data"] for paragraph in article["paragraphs"]]
    return [text for passage in passages for text in (passage["context"], *(entry["question"] for entry in passage["qas"]))]


def _bert_config(size: int, layers: int, hidden: int, positions: int = POSITIONS) -> Any:
    from transformers import BertConfig

    return BertConfig(
        vocab_size=size,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        max_position_embeddings=positions,
        initializer_range=INITIALIZER_RANGE,
    )


def _save(path: Path, make: Any, cased: bool, seed: int, vocabulary: Sequence[str] | None) -> Path:
    import torch
    from transformers import BertTokenizerFast

    path.mkdir(parents=True, exist_ok=True)
    tokens = list(vocabulary) if vocabulary is not None else sample_vocabulary(cased)
    (path / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make(len(tokens)).eval()
        with torch.no_grad():
            for parameter in model.parameters():  # biases are born zero and norms one: a copy that forgets them would pass unseen
                if parameter.dim() == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(path)
    tokenizer = BertTokenizerFast(vocab_file=str(path / "vocab.txt"), do_lower_case=not cased, model_max_length=POSITIONS)
    tokenizer.save_pretrained(path)
    return path
