"""Grow a deeper BERT out of a shallow one: each layer is repeated in place.

    pocketqa grow BASE --layers 12 --out runs-local/teacher-start
    pocketqa grow BASE --inverted-bottleneck 1024 --hidden 512 --heads 4 --layers 24 --out runs-local/ib-start     # MobileBERT's teacher

The result is a start for training, not a finished model.  `--insert copy` repeats layers as they are; `--insert quiet` makes the repeated
ones pass their input on nearly unchanged at first, so that little of what the shallow model knew is lost before training.

--inverted-bottleneck takes only the vocabulary of BASE: an encoder drawn at random, wide inside its layers and narrow between them (see
`distillation/models/students.py`), from which `pocketqa pretrain` makes a teacher for a MobileBERT student.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from transformers import BertForQuestionAnswering

from distillation.models import modeling
from distillation.models.students import inverted_bottleneck, parameters_of
from distillation.training.checkpoints import save_start
from pocketqa.arguments import verb_parser
from pocketqa.errors import TrainingError


def main(argv: list[str]) -> int:
    """The verb `pocketqa grow`."""
    parser = verb_parser("pocketqa grow", __doc__)
    parser.add_argument("base", help="folder or Hub name of a BERT, with or without a question-answering head")
    parser.add_argument("--layers", type=int, default=12, help="layers of the result, a multiple of the base's (default 12)")
    parser.add_argument("--insert", choices=("copy", "quiet"), default="copy", help="how repeated layers start (default copy)")
    parser.add_argument("--seed", type=int, default=0, help="of a new question-answering head (default 0)")
    parser.add_argument("--out", type=Path, required=True, help="folder to leave the checkpoint in")
    group = parser.add_argument_group("MobileBERT's teacher")
    group.add_argument("--inverted-bottleneck", type=int, metavar="H", help="draw an encoder so wide inside its layers")
    group.add_argument("--hidden", type=int, metavar="H", help="its size between layers (default: half of that)")
    group.add_argument("--heads", type=int, metavar="A", help="its attention heads (default: those of BASE)")
    given = parser.parse_args(argv)
    torch.manual_seed(given.seed)
    if given.inverted_bottleneck:
        return _inverted(given)
    if given.hidden or given.heads:
        raise TrainingError("--hidden and --heads are for --inverted-bottleneck; a grown model keeps those of its base.")
    base = modeling.load_reader(given.base)
    if not isinstance(base, BertForQuestionAnswering):
        raise TrainingError(f"Expected a BERT to grow, found {type(base).__name__} in {given.base}.")
    shallow = modeling.depth(base.config)
    grown = modeling.grow(base, given.layers, given.insert)
    save_start(grown, given.base, given.out, {"step": "grow", "from_layers": shallow, "layers": given.layers, "insert": given.insert})
    print(f"{shallow} -> {given.layers} layers, {parameters_of(grown):,} parameters, in {given.out}", file=sys.stderr)
    print(f"next: pocketqa finetune {given.out} --data train-v1.1.json --out {given.out}-finetuned", file=sys.stderr)
    return 0


def _inverted(given: argparse.Namespace) -> int:
    config = modeling.load_config(given.base)
    inner, hidden, heads = given.inverted_bottleneck, given.hidden or given.inverted_bottleneck // 2, given.heads or config.num_attention_heads
    model = inverted_bottleneck(config, given.layers, inner, hidden, heads)
    step = {"step": "inverted-bottleneck", "layers": given.layers, "inner": inner, "hidden": hidden, "heads": heads, "seed": given.seed}
    save_start(model, given.base, given.out, step)
    print(f"{given.layers} layers, {parameters_of(model):,} parameters, drawn at random, in {given.out}", file=sys.stderr)
    print(f"next: pocketqa pretrain {given.out} --corpus TEXT --out {given.out}-teacher", file=sys.stderr)
    return 0
