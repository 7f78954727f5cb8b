"""Start a student from some layers of a teacher: a DistilBERT, without token types and without a pooler.

    pocketqa student TEACHER --layers 6 --out runs-local/student-start
    pocketqa student bert-base-uncased --teacher-layers 0 2 4 6 8 10 --out runs-local/student-start

Layers are spread evenly from the first to the last, 0 2 4 7 9 11 for 12 -> 6, as in the released DistilBERT; of a teacher that was grown in
blocks, as its manifest tells, those of its base are taken.  Token-type row 0 is added to the positions, so that a student with all layers computes
what the teacher does on segment 0; --drop-token-types leaves it out, as the released DistilBERT did.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import BertForQuestionAnswering

from distillation.models import modeling
from distillation.models.students import layers_of_start, parameters_of
from distillation.training.checkpoints import save_start
from pocketqa.arguments import verb_parser
from pocketqa.errors import TrainingError


def main(argv: list[str]) -> int:
    """The verb `pocketqa student`."""
    parser = verb_parser("pocketqa student", __doc__)
    parser.add_argument("teacher", help="folder or Hub name of a BERT, with or without a question-answering head")
    parser.add_argument("--layers", type=int, default=6, help="layers of the student, evenly spread over the teacher's (default 6)")
    parser.add_argument("--teacher-layers", type=int, nargs="+", metavar="I", help="take exactly these layers, counted from 0")
    parser.add_argument("--drop-token-types", action="store_true", help="do not fold token-type row 0 into the positions")
    parser.add_argument("--seed", type=int, default=0, help="of a new question-answering head (default 0)")
    parser.add_argument("--out", type=Path, required=True, help="folder to leave the checkpoint in")
    given = parser.parse_args(argv)
    torch.manual_seed(given.seed)
    teacher, headed = modeling.load_or_start(given.teacher)
    if not isinstance(teacher, BertForQuestionAnswering):
        raise TrainingError(f"Expected a BERT as teacher, found {type(teacher).__name__} in {given.teacher}.")
    layers, how = layers_of_start(given.teacher, modeling.depth(teacher.config), given.layers, given.teacher_layers)
    student = modeling.student_from_teacher(teacher, layers, fold_token_type=not given.drop_token_types)
    save_start(student, given.teacher, given.out, {"step": "student", "teacher_layers": list(layers), "fold_token_type": not given.drop_token_types})
    print(f"teacher layers {' '.join(map(str, layers))}, {how}; {parameters_of(student):,} parameters, in {given.out}", file=sys.stderr)
    reader = f" --teacher {given.teacher}" if headed else ""
    print(f"next: pocketqa finetune {given.out}{reader} --data train-v1.1.json --out {given.out}-finetuned", file=sys.stderr)
    return 0
