"""How fast training on text is: this project's way against the plain way done well, and what each step between them contributes.

    pocketqa benchmark --workload training models/student --corpus text/
    pocketqa benchmark --workload training models/student --teacher models/teacher --corpus text/ --run-file runs

All ways train one model on one corpus, turn by turn in an order drawn anew for each round; tokens are counted without padding.  Weights do not matter
for speed, so a model without a language head gets one.  First the losses of all ways are compared on the same batches: they must agree in fp32, and
in the precision of the training up to its rounding.  With --teacher the triple loss of DistilBERT is measured, with soft targets at the masked tokens
and, for comparison, at all tokens.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel

from distillation.models import modeling
from distillation.models.modeling import dropout_rates
from distillation.models.teachers import check_fit
from distillation.speed_ways import EVERYWHERE, WATERFALL, Task, Way, batches
from distillation.text import lm
from distillation.text.corpus import Corpus, CorpusArguments, open_corpus
from distillation.text.masking import MaskedBatch
from distillation.text.pretrain_recipe import PretrainRecipe
from distillation.training import memory, processes, recipes
from distillation.training.checkpoints import weights_hash
from distillation.training.loop import DTYPES, make_optimizer
from pocketqa.arguments import verb_parser
from pocketqa.errors import OptionsError, TrainingError
from pocketqa.features import Tokenizer
from pocketqa.runs import DataFile, RunFile, Subject, check_target, mean_interval, mean_ratio, new_run, training_speed_results, write
from pocketqa.types import JSON

SIDE = 2048  # of the square matrices whose product is the machine's rate
RATE_SECONDS = 1.0
LARGEST_DIFFERENCE = 1e-3  # of the losses of two ways on one batch in fp32, where the rounding of bf16 hides nothing
LARGEST_SHARE = 1e-3  # the same in the precision of the training, as a share of the loss: bf16 keeps 8 bits of each number
COMPARED = 4  # batches


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """One way's turns."""

    way: Way
    tokens: list[int]  # without padding, one a turn
    seconds: list[float]
    operations: list[float]

    @property
    def rates(self) -> NDArray[np.float64]:
        """Tokens a second of each turn."""
        return np.divide(self.tokens, self.seconds)

    @property
    def tflops(self) -> float:
        """10^12 floating-point operations a second over all turns."""
        return sum(self.operations) / sum(self.seconds) / 1e12


@dataclass(frozen=True, slots=True)
class Difference:
    """The largest between the losses of the ways on one batch."""

    absolute: float
    share: float  # of the loss


def main(argv: list[str]) -> int:
    """The verb `pocketqa benchmark --workload training`."""
    given = _parse(argv)
    check_target(given.run_file)
    recipe = recipes.from_arguments(given, PretrainRecipe)
    model = _model(given.model, recipe)
    teacher = _model(given.teacher, recipe).eval() if given.teacher else None
    running, apart = (_corpus(given, recipe, packed) for packed in (True, False))
    check_fit(Tokenizer(Path(given.model) / "tokenizer.json"), recipe.max_tokens, [given.model, *([given.teacher] if given.teacher else [])])
    documents = []
    tasks = [(Task(model, teacher), WATERFALL), *([(Task(model, teacher, everywhere=True), EVERYWHERE)] if teacher else [])]
    for task, ways in tasks:
        documents.append(measure_task(task, ways, running, apart, recipe, given.rounds, given.steps))
        print("\n".join(lines(documents[-1])), flush=True)
        if given.run_file:
            run = _run_of(given, argv, running, recipe, documents[-1], "everywhere" if task.everywhere else "triple" if teacher else "mlm")
            processes.say(f"run file: {write(run, given.run_file)}")
    print(json.dumps(documents))
    return 0


def measure_task(task: Task, ways: Sequence[Way], running: Corpus, apart: Corpus, recipe: PretrainRecipe, rounds: int, steps: int) -> JSON:
    """Race the ways on a task; the results of kind "training-speed".  Raises TrainingError where their losses differ."""
    exact, trained = (loss_difference(task, ways, running, apart, recipe, precision) for precision in ("fp32", recipe.precision))
    if exact.absolute > LARGEST_DIFFERENCE or trained.share > LARGEST_SHARE:
        raise TrainingError(
            f"The ways should have one loss, within {LARGEST_DIFFERENCE} in fp32 and {LARGEST_SHARE} of it in {recipe.precision}; on one batch they "
            f"differ by {exact.absolute:.2g} and {trained.share:.2g} of it. Their speeds cannot be compared."
        )
    processes.say(
        f"{task.words}: losses of all ways on {COMPARED} batches within {exact.absolute:.1e} in fp32, within {trained.absolute:.1e} in "
        f"{recipe.precision}, {trained.share:.1e} of the loss"
    )
    before = {name: matrix_rate(DTYPES[name]) for name in ("bf16", "fp32")}
    measured = race(task, ways, running, apart, recipe, rounds, steps)
    after = {name: matrix_rate(DTYPES[name]) for name in ("bf16", "fp32")}
    top = {name: max(before[name], after[name]) for name in before}
    rows: list[JSON] = []
    for number, item in enumerate(measured):
        row: JSON = {"step": item.way.words, "tokens_per_second": round(float(item.rates.mean()), 1), "tflops": round(item.tflops, 4)}
        rows.append(row | ({"ratio": mean_ratio(item.rates, measured[number - 1].rates).to_json()} if number else {}))
    ours, plain = measured[-1], measured[0]
    rate = {"measured_tflops": top["bf16"], "measured_fp32_tflops": top["fp32"], "reached_tflops": ours.tflops, "plain_tflops": plain.tflops}
    return training_speed_results(
        task.words,
        {"plain": mean_interval(plain.rates), "pocketqa": mean_interval(ours.rates)},
        mean_ratio(ours.rates, plain.rates),
        rows,
        matrix_rate={name: round(value, 4) for name, value in rate.items()},
        loss_difference=trained.share,
        extra={
            "loss_difference_absolute": {"fp32": exact.absolute, recipe.precision: trained.absolute},
            "rounds": rounds,
            "steps_a_turn": steps,
            "threads": torch.get_num_threads(),
        },
    )


def race(task: Task, ways: Sequence[Way], running: Corpus, apart: Corpus, recipe: PretrainRecipe, rounds: int, steps: int) -> list[Measured]:
    """Turns of all ways, in an order drawn anew each round; the first step of a turn warms up and is not counted."""
    take = stepper(task, recipe)
    entries = [(Measured(way, [], [], []), batches(way, running, apart, recipe)) for way in ways]
    random = np.random.default_rng(recipe.seed)
    for number in range(rounds):
        for index in random.permutation(len(entries)):
            measured, source = entries[index]
            (memory.keep_pages if measured.way.keep else memory.give_back_pages)()
            take(next(source), measured.way)
            turn = [next(source) for _ in range(steps)]
            began = time.perf_counter()
            for batch in turn:
                take(batch, measured.way)
            measured.seconds.append(time.perf_counter() - began)
            measured.tokens.append(sum(batch.tokens for batch in turn))
            measured.operations.append(sum(task.operations(batch, measured.way) for batch in turn))
        said = ", ".join(f"{item.rates[-1]:,.0f}" for item, _ in entries)
        processes.say(f"round {number + 1} of {rounds}: {said} tokens a second")
    return [measured for measured, _ in entries]


def stepper(task: Task, recipe: PretrainRecipe) -> Callable[[MaskedBatch, Way], float]:
    """A function that takes one optimiser step and returns its loss.  The learning rate is 0: what is measured leaves the model as it was."""
    device = processes.device()
    _move(task, device)
    optimizer = make_optimizer(task.model, recipe)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    task.model.train()

    def take(batch: MaskedBatch, way: Way) -> float:
        with torch.autocast(device.type, dtype=DTYPES[recipe.precision], enabled=recipe.precision != "fp32"):
            loss = task.loss(batch.to(device), way)
        loss.backward()
        nn.utils.clip_grad_norm_(task.model.parameters(), recipe.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())  # waits for the device

    return take


def loss_difference(task: Task, ways: Sequence[Way], running: Corpus, apart: Corpus, recipe: PretrainRecipe, precision: str) -> Difference:
    """The largest difference between the losses of the ways on the same batches, packed and padded ones, without dropout."""
    device = processes.device()
    _move(task, device)
    task.model.eval()
    absolute = share = 0.0
    for way in {item.packed: item for item in ways}.values():
        source = batches(way, running, apart, recipe)
        for _ in range(COMPARED):
            batch = next(source).to(device)
            with torch.autocast(device.type, dtype=DTYPES[precision], enabled=precision != "fp32"):
                found = [float(task.loss(batch, other).detach()) for other in ways]  # with gradients, as in training
            absolute, share = max(absolute, max(found) - min(found)), max(share, (max(found) - min(found)) / max(found))
    return Difference(absolute, share)


def matrix_rate(dtype: torch.dtype) -> float:
    """10^12 floating-point operations a second of a product of square matrices: the best of repeated ones, what the machine can do at most."""
    device = processes.device()
    left, right = torch.randn(SIDE, SIDE, dtype=dtype, device=device), torch.randn(SIDE, SIDE, dtype=dtype, device=device)
    best, until = float("inf"), time.perf_counter() + RATE_SECONDS
    float((left @ right)[0, 0])
    while time.perf_counter() < until:
        began = time.perf_counter()
        float((left @ right)[0, 0])  # waits for the device
        best = min(best, time.perf_counter() - began)
    return 2 * SIDE**3 / best / 1e12


def lines(results: JSON) -> list[str]:
    """The results for people."""
    made = [results["workload"]]
    for row in results["waterfall"]:
        gain = f"  {row['ratio']['value']:.2f} x [{row['ratio']['low']:.2f}, {row['ratio']['high']:.2f}]" if "ratio" in row else ""
        made.append(f"  {row['tokens_per_second']:>10,.0f} tokens/s  {row['tflops']:.3f} TFLOP/s  {row['step']}{gain}")
    ratio, rate = results["ratio"], results["matrix_rate"]
    made.append(f"  ours / plain: {ratio['value']:.2f} x [{ratio['low']:.2f}, {ratio['high']:.2f}], 95 % interval")
    share = 100 * rate["reached_tflops"] / rate["measured_tflops"]
    made.append(
        f"  matrix rate: {rate['measured_tflops']:.3f} TFLOP/s in bf16 ({rate['measured_fp32_tflops']:.3f} in fp32), {share:.0f} % of bf16 reached"
    )
    return made


def _model(source: str, recipe: PretrainRecipe) -> PreTrainedModel:
    torch.manual_seed(recipe.seed)
    return lm.load_or_start(source, **dropout_rates(modeling.load_config(source).model_type, recipe.dropout, recipe.attention_dropout))[0]


def _move(task: Task, device: torch.device) -> None:
    for module in (task.model, task.teacher):
        if module is not None:
            nn.Module.to(module, device)  # the library's own has no types


def _corpus(given: argparse.Namespace, recipe: PretrainRecipe, packed: bool) -> Corpus:
    text = CorpusArguments.of(given)
    options = recipes.resolve(PretrainRecipe, None, {"max_tokens": recipe.max_tokens, "packed": packed, "min_tokens": recipe.min_tokens})
    return open_corpus(text.paths, Path(given.model), options.rows(text.limit), text.cache, processes.say)


def _run_of(given: argparse.Namespace, argv: Sequence[str], corpus: Corpus, recipe: PretrainRecipe, results: JSON, name: str) -> RunFile:
    threads = torch.get_num_threads()
    subjects = [Subject(Path(given.model).name, "model", weights_hash(given.model), "torch", torch.__version__, recipe.precision, threads)]
    if given.teacher:
        subjects.append(Subject(Path(given.teacher).name, "teacher", weights_hash(given.teacher)))
    data = [DataFile(source["name"], source["sha256"], source["documents"], "training") for source in corpus.sources]
    title = f"{Path(given.model).name} {name}"
    return new_run("training-speed", title, subjects, data, ["pocketqa", "benchmark", *argv], results, ["phones: this is the speed of training"])


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = verb_parser("pocketqa benchmark --workload training", __doc__)
    parser.add_argument("--workload", choices=("training",), default="training", help=argparse.SUPPRESS)
    parser.add_argument("model", help="folder of the model to train, with its tokenizer")
    parser.add_argument("--teacher", metavar="MODEL", help="folder of a teacher with the same vocabulary: measure the triple loss")
    CorpusArguments.add_flags(parser)
    parser.add_argument("--rounds", type=int, default=12, metavar="N", help="turns of each way (default %(default)s)")
    parser.add_argument("--steps", type=int, default=2, metavar="N", help="counted optimiser steps of a turn (default %(default)s)")
    parser.add_argument("--run-file", type=Path, metavar="PATH", help="write run files to this folder")
    recipes.add_flags(parser, PretrainRecipe)
    given = parser.parse_args(argv)
    given.out = Path(given.model)  # beside which the corpus cache lies, unless --cache says otherwise
    if given.rounds < 2 or given.steps < 1:
        raise OptionsError(f"Expected at least 2 rounds of 1 step, found {given.rounds} of {given.steps}: an interval needs turns that differ.")
    return given
