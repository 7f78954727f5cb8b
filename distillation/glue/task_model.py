"""BERT, DistilBERT and MobileBERT with a head for classification: loading and predicting.

Legend: N rows, B rows of a batch, C classes (1 for a real number).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from transformers.utils import logging

from distillation.glue.classification import Task, TaskBatch, TaskRow, task_named
from distillation.glue.task_data import to_batch
from distillation.models import modeling
from distillation.training import processes
from pocketqa.errors import OptionsError, TrainingError

# What may be drawn anew: poolers too, since the reading heads do without them.
HEADS = ("classifier.", "pre_classifier.", "bert.pooler.", "mobilebert.pooler.")
PREDICT_TOKENS = 16384  # of a batch, padding included


def load_classifier(source: str, task: Task, *, new_head: bool, say: Callable[[str], None] = processes.say, **overrides: Any) -> PreTrainedModel:
    """A BERT, DistilBERT or MobileBERT with a head for `task` from a folder or Hub name.

    new_head: heads of other tasks are dropped and a new one is drawn from torch's global generator, which is said; otherwise a checkpoint that was
    not trained on this task is refused with the command that trains it.  overrides: configuration values to set, such as dropout rates.
    """
    config = modeling.load_config(source)
    learnt = _learnt(config)
    if not new_head and (learnt != task.name or config.num_labels != task.outputs):
        raise TrainingError(
            f"Expected a checkpoint trained on {task.title}, found one of {learnt or 'no task of classification'} in {source}. "
            f"Train one with: pocketqa finetune {source} --task {task.name} --data DIR --out OUT"
        )
    if learnt == task.name and not _has_classes(config, task):
        if not new_head:
            raise TrainingError(
                f"{source} has the classes of {task.title} in another order than the data: {', '.join(map(str, config.id2label.values()))}; expected "
                f"{', '.join(task.classes)}. Reorder the rows of its classifier and id2label, or train it again."
            )
        learnt = None
    for key, value in (_labels(task) | overrides).items():
        setattr(config, key, value)
    told = logging.get_verbosity()
    logging.set_verbosity_error()  # it tells of new weights too, and we say which and why
    try:
        model, report = modeling.load_weights(AutoModelForSequenceClassification, source, config, ignore_mismatched_sizes=True)
    finally:
        logging.set_verbosity(told)
    mismatched = {entry if isinstance(entry, str) else entry[0] for entry in report["mismatched_keys"]}
    drawn = sorted({*report["missing_keys"], *mismatched})
    if wrong := [name for name in drawn if not name.startswith(HEADS)]:
        raise TrainingError(
            f"{source} lacks {len(wrong)} weights of a {config.model_type} encoder, first {wrong[0]!r}. Expected a complete checkpoint."
        )
    if not new_head and drawn:
        raise TrainingError(f"{source} lacks {drawn[0]!r}, a weight of its own head. Train it again with: pocketqa finetune --task {task.name}")
    for name in ("pre_classifier", "classifier") if learnt != task.name else ():
        head = getattr(model, name, None)
        if isinstance(head, nn.Linear) and f"{name}.weight" not in drawn:  # as many classes, but others
            nn.init.normal_(head.weight, std=config.initializer_range)
            nn.init.zeros_(head.bias)
            drawn += [f"{name}.bias", f"{name}.weight"]
    _say_heads(source, report["unexpected_keys"], drawn, say)
    return model


def _learnt(config: Any) -> str | None:
    """The task that a checkpoint says it was trained on, by our name where it is one of ours."""
    said = getattr(config, "finetuning_task", None)
    try:
        return None if said is None else task_named(str(said)).name
    except OptionsError:
        return str(said)


def _has_classes(config: Any, task: Task) -> bool:
    """Whether a checkpoint has the classes of a task in our order, as far as it names them so: names of its own, such as LABEL_0, say nothing."""
    said = [str(name).lower() for _, name in sorted((int(at), name) for at, name in (config.id2label or {}).items())]
    ours = [name.lower() for name in task.classes]
    return said == ours or sorted(said) != sorted(ours)


def outputs_of(model: nn.Module, batch: TaskBatch) -> Tensor:
    """Logits (B, C), or for a real number (B, 1)."""
    return cast(Tensor, model(**modeling.inputs_of(model, batch.ids, batch.mask, batch.token_types)).logits)


def predict(model: PreTrainedModel, rows: Sequence[TaskRow], task: Task, pad_id: int, precision: str = "fp32") -> Tensor:
    """Outputs (N, C) in float32, in the order of the rows; a model in training mode is put back into it."""
    device, training = model.device, model.training
    out = torch.zeros((len(rows), task.outputs))  # (N, C)
    model.eval()
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i].ids))
    at = 0
    while at < len(order):
        chosen = order[at : at + max(1, PREDICT_TOKENS // len(rows[order[at]].ids))]
        batch = to_batch([rows[i] for i in chosen], task, pad_id).to(device)
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            out[chosen] = outputs_of(model, batch).float().cpu()
        at += len(chosen)
    model.train(training)
    return out


def predictions_of(outputs: Tensor, task: Task) -> Tensor:
    """(N,) the likeliest class of each row, or the real number."""
    return outputs[:, 0] if task.real else outputs.argmax(dim=-1)


def _labels(task: Task) -> dict[str, Any]:
    names = dict(enumerate(task.classes)) if task.classes else {0: "score"}
    kind = "regression" if task.real else "single_label_classification"
    return {
        "num_labels": task.outputs,
        "id2label": names,
        "label2id": {n: i for i, n in names.items()},
        "problem_type": kind,
        "finetuning_task": task.name,
    }


def _say_heads(source: str, unexpected: Sequence[str], drawn: Sequence[str], say: Callable[[str], None]) -> None:
    dropped = sorted({name.partition(".")[0] for name in unexpected})
    if dropped:
        say(f"{source}: dropped the weights of another head: {', '.join(dropped)}")
    if drawn:
        say(f"{source}: new weights for {json.dumps(sorted({name.rpartition('.')[0] for name in drawn}))}, drawn from the seed")
