"""Repeat a distillation with parts left out or changed, in paired seeds, beside the differences that the paper gives.

    pocketqa ablate --preset paper --teacher TEACHER --corpus TEXT --data train-v1.1.json@0.2 --dev dev.json --tokens 10000000 --out DIR
    pocketqa ablate --preset paper ... --reader READER           also the rows that are fine-tuned with a teacher
    pocketqa ablate --preset paper ... --rows no-mlm random --seeds 0 1 2 --dry-run
    pocketqa ablate --preset controls --teacher TEACHER --reader READER --base BASE ...     what each step of distillation is worth
    pocketqa ablate --preset recipes --teacher TEACHER --reader READER ...                 an undistilled student, DistilBERT's recipe, TinyBERT's
    pocketqa ablate --preset tasks --teacher T --student S --base B --data GLUE ...         on GLUE and IMDb: pocketqa ablate --preset tasks --help

Each row is a distillation on text, a fine-tuning on questions and an evaluation on the development split; each leaves a folder in DIR, and the same
command given again goes on after the last that is finished.  --jobs runs several at once, which small models need to fill many cores.
A row may be fine-tuned in several stages, which divide the epochs of --finetune-flags evenly among them, so that every row takes as many steps; and
it may start from the teacher's layers as they are, without distillation.
The table compares every row with its reference on the same questions and seeds.
TEACHER has a language head (`pocketqa pretrain` trains one); READER answers questions and has the same vocabulary; BASE is what controls are
fine-tuned from, without distillation.  --final measures every row once more, on data by which nothing was chosen, and makes a table of its own.
"""

from __future__ import annotations

import argparse
import importlib
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from distillation.ablation import ablation_cost
from distillation.ablation.ablation_plan import Common, Plan, choose_rows, make_plan, read_preset
from distillation.ablation.ablation_table import ablation_run
from distillation.ablation.ablation_work import OWNED_OF_ALL, Row, Work, add_jobs_flag, check_owned, check_words, problems_of_run, report_command
from distillation.ablation.side_by_side import Run, run_all, say_overlap
from pocketqa import squad
from pocketqa.arguments import verb_parser
from pocketqa.errors import OptionsError
from pocketqa.reporting.training_tables import ablation_lines
from pocketqa.runs import RunFile, write

DEFAULT_TOKENS = 2_000_000
WORDS = {"student": "cut out of the teacher"}  # what is said of a verb in the plan


def _verb(module: str) -> Callable[[list[str]], int]:
    """The verb of a module, which is loaded when it runs, since torch takes seconds and --help needs none of it."""
    return lambda argv: int(importlib.import_module(module).main(argv))


VERBS: dict[str, Callable[[list[str]], int]] = {
    "student": _verb("distillation.student"),
    "distill": _verb("distillation.distill"),
    "finetune": _verb("distillation.finetune"),
    "evaluate": _verb("distillation.evaluate"),
    "final": _verb("distillation.evaluate"),
}


def main(argv: list[str]) -> int:
    """The verb `pocketqa ablate`."""
    if any(words in (["--preset", "tasks"], ["--preset=tasks"]) for at in range(len(argv)) for words in (argv[at : at + 2], argv[at : at + 1])):
        from distillation.ablation import task_comparison

        return task_comparison.main(argv)
    given = _parser().parse_args(argv)
    _check(given)
    rows, left_out = choose_rows(read_preset(given.preset), given.rows, given.reader, given.base)
    common = Common(
        out=given.out,
        teacher=given.teacher,
        corpus=tuple(given.corpus),
        data=tuple(given.data),
        dev=given.dev,
        reader=given.reader,
        tokens=given.tokens,
        distill_flags=tuple(shlex.split(given.distill_flags)),
        finetune_flags=tuple(shlex.split(given.finetune_flags)),
        dev_limit=given.dev_limit,
        base=given.base,
        final=given.final,
        precision=given.precision,
    )
    check_owned([word for row in rows for word in row.flags])
    check_owned([*common.distill_flags, *common.finetune_flags], OWNED_OF_ALL)
    _check_sources(common)
    maps = ablation_cost.layer_maps(common)
    plan = make_plan(rows, given.seeds, common, maps, left_out)
    _check_words(plan)
    for work in plan.works:
        work.check()
    _say_plan(plan, given.seeds)
    if given.dry_run:
        ablation_cost.say_times(plan, common, maps, _say)
        say_overlap(given.jobs, _say)
        return 0
    if status := run_all(plan.works, given.jobs, _do, VERBS, _say):
        return status
    for verb, own in {"evaluate": "ablation.json", **({"final": "ablation-final.json"} if given.final else {})}.items():
        run = ablation_run(plan, given.seeds, common, ["pocketqa", "ablate", *argv], verb, Path(given.preset).stem)
        _print(run)
        for target in (given.out / "runs" / own, given.run_file):
            if target:
                _say(f"run file: {write(run, target)}")
    _say(report_command(given.out, "runs"))
    return 0


def _check_words(plan: Plan) -> None:
    """Raise OptionsError for flags that a verb would refuse, hours from now.  What `student` is given is the plan's own."""
    from distillation import distill, evaluate, finetune

    scored = evaluate._parser().parse_args
    check_words(plan.works, {"distill": distill._parse, "finetune": finetune._parse, "evaluate": scored, "final": scored})


def _check_sources(common: Common) -> None:
    """Read what works will read hours from now, when a mistyped path would pass for a name on the Hub.  Raises DataError or TrainingError."""
    from distillation.models import modeling
    from distillation.questions.data import DataSource
    from distillation.text.corpus_text import find_sources

    find_sources(common.corpus)
    for text in common.data:
        squad.load(DataSource.parse(text).path, split="train")
    for file in (common.dev, common.final):
        if file:
            squad.load(file)
    for model in (common.reader, common.base):
        if model:
            modeling.load_config(model)


def _do(work: Work, place: str, run: Run) -> int:
    """Run one work unless it is finished; its exit status, not 0 where it was stopped or failed."""
    part = f", stage {work.stage + 1} of {len(work.row.stages)}" if work.verb == "finetune" and work.row.stages else ""
    title = f"[{place}] {work.verb} {work.row.name}{part}, seed {work.seed}"
    if work.done:
        _say(f"{title}: finished already")
        return 0
    _say(f"{title}: pocketqa {work.typed} {shlex.join(work.words)}")
    work.begin()
    return run(work)


def _check(given: argparse.Namespace) -> None:
    problems = problems_of_run(given)
    if given.tokens < 1:
        problems.append(f"--tokens must be at least 1, found {given.tokens}")
    if given.run_file and given.run_file.suffix == ".json" and given.final:
        problems.append(f"--run-file must be a folder where there is --final, since two run files are left; found {given.run_file}")
    if problems:
        raise OptionsError("The ablation cannot be run: " + "; ".join(problems) + ".")


def _say_plan(plan: Plan, seeds: Sequence[int]) -> None:
    count = {verb: sum(work.verb == verb for work in plan.works) for verb in VERBS}
    said = ", ".join(f"{many} to {WORDS.get(verb, verb)}" for verb, many in count.items() if many)
    finished = sum(work.done for work in plan.works)
    _say(f"{len(plan.rows)} rows, seeds {' '.join(map(str, seeds))}: {said}")
    for row in plan.rows:
        _say(f"  {row.name:24} {row.words}{_flags(row)}")
    if plan.left_out:
        _say(f"left out: {', '.join(plan.left_out)}")
    if finished:
        _say(f"{finished} of {len(plan.works)} are finished already")


def _flags(row: Row) -> str:
    stages = [(f"stage {number}", stage) for number, stage in enumerate(row.stages, 1)]
    said = [f"{verb} {shlex.join(flags)}" for verb, flags in (("distill", row.distill), ("finetune", row.finetune), *stages) if flags]
    return f" ({'; '.join(said)})" if said else ""


def _print(run: RunFile) -> None:
    print("\n".join(ablation_lines({run.file_name: run}, lambda name, _: name)))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = verb_parser("pocketqa ablate", __doc__)
    parser.add_argument("--preset", default="paper", metavar="NAME", help="rows by name, or a TOML file of rows (default: paper)")
    parser.add_argument("--teacher", required=True, metavar="MODEL", help="BERT with a language head to distil from")
    parser.add_argument("--corpus", required=True, nargs="+", metavar="TEXT", help="text to distil on, as `pocketqa distill` takes it")
    parser.add_argument(
        "--data", required=True, nargs="+", metavar="FILE[@SHARE]", help="questions to fine-tune on, as `pocketqa finetune` takes them"
    )
    parser.add_argument("--dev", required=True, metavar="FILE", help="development split on which rows are compared")
    parser.add_argument("--dev-limit", type=int, metavar="N", help="a seeded sample of N of its questions")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder of all runs; another call goes on in it")
    parser.add_argument("--reader", metavar="MODEL", help="teacher of the rows that are fine-tuned with one")
    parser.add_argument("--base", metavar="MODEL", help="what the rows without distillation are fine-tuned from")
    parser.add_argument("--final", metavar="FILE", help="measure each row once on these questions too, all of them, when everything else is done")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of the arithmetic of evaluations (default: fp32)")
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="only these rows, and those they are compared with (default: all)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="seeds, the same for every row (default: 0 1 2)")
    parser.add_argument("--tokens", type=int, default=DEFAULT_TOKENS, metavar="N", help=f"of each distillation (default {DEFAULT_TOKENS:,})")
    parser.add_argument("--distill-flags", default="", metavar="FLAGS", help="for every distillation, in one word: '--batch-tokens 8192'")
    parser.add_argument("--finetune-flags", default="", metavar="FLAGS", help="for every fine-tuning, in one word: '--epochs 2', which stages share")
    add_jobs_flag(parser)
    parser.add_argument("--run-file", type=Path, metavar="PATH", help="write the run file to this folder or .json path as well")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and the expected time, and run nothing")
    return parser
