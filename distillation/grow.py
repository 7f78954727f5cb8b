"""Grow a deeper BERT out of a shallow one: each layer is repeated in place.

    pocketqa grow BASE --layers 12 --out runs-local/teacher-start

The result is a start for training, not a finished model.  `--insert copy` repeats layers as they are; `--insert quiet` makes the repeated
ones pass their input on nearly unchanged at first, so that little of what the shallow model knew is lost before training.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from transformers import BertForQuestionAnswering

from distillation import modeling
from distillation.checkpoints import save_start
from pocketqa.errors import TrainingError


def main(argv: list[str]) -> int:
    """The verb `pocketqa grow`."""
    parser = argparse.ArgumentParser(prog="pocketqa grow", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="folder or Hub name of a BERT, with or without a question-answering head")
    parser.add_argument("--layers", type=int, default=12, help="layers of the result, a multiple of the base's (default 12)")
    parser.add_argument("--insert", choices=("copy", "quiet"), default="copy", help="how repeated layers start (default copy)")
    parser.add_argument("--seed", type=int, default=0, help="of a new question-answering head (default 0)")
    parser.add_argument("--out", type=Path, required=True, help="folder to leave the checkpoint in")
    given = parser.parse_args(argv)
    torch.manual_seed(given.seed)
    base = modeling.load_reader(given.base)
    if not isinstance(base, BertForQuestionAnswering):
        raise TrainingError(f"Expected a BERT to grow, found {type(base).__name__} in {given.base}.")
    shallow = modeling.depth(base.config)
    grown = modeling.grow(base, given.layers, given.insert)
    save_start(grown, given.base, given.out, {"step": "grow", "from_layers": shallow, "layers": given.layers, "insert": given.insert})
    print(f"{shallow} -> {given.layers} layers, {sum(p.numel() for p in grown.parameters()):,} parameters, in {given.out}", file=sys.stderr)
    print(f"next: pocketqa finetune {given.out} --data train-v1.1.json --out {given.out}-finetuned", file=sys.stderr)
    return 0
