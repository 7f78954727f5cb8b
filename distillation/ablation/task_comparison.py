"""`pocketqa ablate --preset tasks`: teacher, student and control on the small tasks of GLUE and on IMDb, the same seeds for every model.

    pocketqa ablate --preset tasks --teacher T --student S --base B --data GLUE IMDB --out DIR --run-file runs
    pocketqa ablate --preset tasks ... --tasks rte wnli --seeds 0 1 --dry-run

T, S and B are where the three start: a teacher, its student (`pocketqa distill`), and a control of the student's size that was not distilled.  Each
is fine-tuned on every task and seed with the same flags and scored once on the development set (of IMDb: the test set); by it nothing is chosen.
Each leaves a run file in DIR/classification; its checkpoint is deleted then, unless --keep-models.  The same command given again goes on.
--data names folders that hold a folder for each task (GLUE/rte/train.tsv, IMDB/imdb/train.csv.xz); tasks that none of them has are left out.
Medians are compared: the table holds the median seed of each, what the student and the control keep of the teacher's score, and the mean of the six
tasks of GLUE, which is not the GLUE score.
"""

from __future__ import annotations

import argparse
import functools
import os
import shlex
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from distillation.ablation import task_cost
from distillation.ablation.ablation_work import (
    OWNED_OF_ALL,
    Row,
    Work,
    add_jobs_flag,
    check_owned,
    check_words,
    content_of_model,
    contents_of,
    identity_of,
    problems_of_run,
    report_command,
)
from distillation.ablation.side_by_side import Run, run_all, say_overlap
from distillation.glue.classification import Task, task_named
from distillation.glue.tasks import find_file, task_folder
from distillation.training.recipes import PREFIX, PRESETS
from pocketqa.arguments import verb_parser
from pocketqa.errors import OptionsError
from pocketqa.folders import ModelFolder, sha256_file
from pocketqa.reporting.training_tables import task_lines
from pocketqa.runs import RunFile, read, write

PRESET = PRESETS / f"{PREFIX}tasks.toml"
ROLES = {"teacher": "the teacher", "student": "its student", "control": "a model of the student's size that was not distilled"}


def _finetune(argv: list[str]) -> int:
    from distillation import classify  # here, since torch takes seconds to load and --help needs none of it

    return classify.main(argv)


def _job_of(words: list[str]) -> object:
    """The fine-tuning as the verb reads it, wherever it will stand.  Raises TrainingError or OptionsError, or exits, as the verb would."""
    from distillation import classify

    given = classify._parser().parse_args(words)
    return classify._job(given, task_named(given.task), None, given.out / "new")


VERBS: dict[str, Callable[[list[str]], int]] = {"finetune": _finetune}


@dataclass(frozen=True, slots=True)
class Planned:
    """A task with its seeds and flags."""

    task: Task
    data: str  # the folder that holds its folder
    seeds: tuple[int, ...]
    finetune: tuple[str, ...]


def main(argv: list[str]) -> int:
    """The route of `pocketqa ablate` for the preset of tasks."""
    given = _parser().parse_args(argv)
    _check(given)
    planned, left_out = choose(given.tasks, given.seeds, given.data, shlex.split(given.finetune_flags))
    check_owned([word for plan in planned for word in plan.finetune], OWNED_OF_ALL)
    starts = {"teacher": given.teacher, "student": given.student, "control": given.base}
    _check_starts(starts.values())
    works = make_works(planned, starts, given.out)
    check_words(works, {"finetune": _job_of})
    for work in works:
        work.check()
    _say_plan(planned, left_out, works)
    if given.dry_run:
        task_cost.say_times(works, {plan.task.name: plan.data for plan in planned}, _say)
        say_overlap(given.jobs, _say)
        return 0
    if status := run_all(works, given.jobs, functools.partial(_do, keep=given.keep_models), VERBS, _say):
        return status
    found = {run.file_name: run for run in (read(work.leaves) for work in works)}
    _print(found)
    for run in found.values() if given.run_file else ():
        _say(f"run file: {write(run, given.run_file)}")
    _say(report_command(given.out, "classification"))
    return 0


def _check_starts(starts: Iterable[str]) -> None:
    """Read the configurations of all models, which for one on the Hub says its commit.  Raises TrainingError."""
    from distillation.models import modeling

    for start in starts:
        modeling.load_config(start)


def choose(
    wanted: Sequence[str] | None, seeds: Sequence[int] | None, folders: Sequence[str], flags: Sequence[str]
) -> tuple[tuple[Planned, ...], tuple[str, ...]]:
    """The tasks of the preset that are wanted and whose data are there, and the names of those without, with the reason.

    seeds: in place of the preset's; a task takes the first of them, as many as the preset says.  flags: added to those of every task.
    Raises OptionsError for unknown tasks, and where no task is left.
    """
    preset = tomllib.loads(PRESET.read_text(encoding="utf-8"))
    entries = {task_named(entry["name"]).name: entry for entry in preset["tasks"]}
    names = [task_named(name).name for name in wanted or entries]
    if unknown := [name for name in names if name not in entries]:
        raise OptionsError(f"Expected tasks out of {', '.join(entries)}, found {', '.join(unknown)}.")
    planned, left_out = [], []
    for name in (name for name in entries if name in names):
        task, entry = task_named(name), entries[name]
        folder = next((folder for folder in folders if task_folder(Path(folder), task)), None)
        if folder is None:
            left_out.append(f"{name} (no folder {name} in {' or '.join(Path(folder).name for folder in folders)})")
            continue
        chosen = tuple(seeds or preset["seeds"])[: entry.get("seeds")]
        planned.append(Planned(task, folder, chosen, (*entry.get("finetune", ()), *flags)))
    if not planned:
        raise OptionsError(f"There is nothing to compare on: {'; '.join(left_out)}. Name folders with a folder for each task: --data GLUE")
    return tuple(planned), tuple(left_out)


def make_works(planned: Sequence[Planned], starts: dict[str, str], out: Path) -> tuple[Work, ...]:
    """A fine-tuning for every task, seed and model.  Seeds are the outer loop, so that every task has one before any has two."""
    models = {role: content_of_model(start) for role, start in starts.items()}
    data = {plan.task.name: _data(plan) for plan in planned}
    works = []
    for at in range(max(len(plan.seeds) for plan in planned)):
        for plan in planned:
            for role, start in starts.items() if at < len(plan.seeds) else ():
                name, seed = plan.task.name, plan.seeds[at]
                cell = f"{name}-{role}-seed-{seed}"
                settings = ("--task", name, "--role", role, "--name", role, "--seed", str(seed), *plan.finetune)
                words = (start, "--data", plan.data, "--out", str(out / "models" / cell), "--run-file", str(out / "new" / cell), *settings)
                recipe = ("--recipe", plan.task.recipe) if plan.task.recipe else ()  # unless the flags name another
                identity = identity_of("task", settings, contents_of((*recipe, *settings)), models[role], data[name])
                works.append(Work("finetune", Row(role, ROLES[role]), seed, words, out / "classification" / f"{cell}.json", identity))
    return tuple(works)


def _data(plan: Planned) -> list[str]:
    files = (find_file(plan.data, plan.task, split) for split in plan.task.splits)
    return [sha256_file(file) for file in files if file]


def _do(work: Work, place: str, run: Run, keep: bool) -> int:
    """Fine-tune and score one model unless that is finished; the exit status, not 0 where it was stopped."""
    title = f"[{place}] {work.leaves.stem.replace('-', ' ')}"
    if work.done:
        _say(f"{title}: finished already")
        return 0
    model, new = (Path(work.words[work.words.index(flag) + 1]) for flag in ("--out", "--run-file"))
    if ModelFolder(model).manifest.is_file() and len(list(new.glob("*.json"))) < 2:  # killed after the training, before its run files
        shutil.rmtree(model)
    work.begin()
    if not model.exists():
        _say(f"{title}: pocketqa finetune {shlex.join(work.words)}")
        if status := run(work):
            return status
    seconds = {run.kind: float(run.results["seconds"]) for run in map(read, new.glob("*.json"))}
    work.begin(seconds=round(sum(seconds.values()), 1))
    for path in new.glob("*.json"):
        if read(path).kind == "classification":
            work.leaves.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, work.leaves)
    if not keep:
        shutil.rmtree(model)
    shutil.rmtree(new)
    return 0


def _check(given: argparse.Namespace) -> None:
    problems = problems_of_run(given)
    if given.run_file and given.run_file.suffix == ".json":
        problems.append(f"--run-file must be a folder, since each fine-tuning leaves a run file; found {given.run_file}")
    problems += [f"--data must name folders, found {folder}" for folder in given.data if not Path(folder).is_dir()]
    if problems:
        raise OptionsError("The comparison cannot be run: " + "; ".join(problems) + ".")


def _say_plan(planned: Sequence[Planned], left_out: Sequence[str], works: Sequence[Work]) -> None:
    _say(f"{len(works)} fine-tunings of {', '.join(ROLES)} on {len(planned)} tasks, {sum(work.done for work in works)} of them finished already")
    for plan in planned:
        _say(f"  {plan.task.title:8} seeds {' '.join(map(str, plan.seeds))} {shlex.join(plan.finetune)}".rstrip())
    if left_out:
        _say(f"left out: {'; '.join(left_out)}")


def _print(found: dict[str, RunFile]) -> None:
    print("\n".join(task_lines(found, lambda name, _: name)))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = verb_parser("pocketqa ablate", __doc__)
    parser.add_argument("--preset", choices=("tasks",), required=True, help="this comparison; the others: pocketqa ablate --help")
    parser.add_argument("--teacher", required=True, metavar="MODEL", help="where the teacher starts: a BERT; heads of other tasks are dropped")
    parser.add_argument("--student", required=True, metavar="MODEL", help="where the student starts: what was distilled from the teacher")
    parser.add_argument("--base", required=True, metavar="MODEL", help="where the control starts: a model of the student's size, not distilled")
    parser.add_argument("--data", required=True, nargs="+", metavar="DIR", help="folders that hold a folder for each task")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder of all runs; another call goes on in it")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="only these tasks (default: all of the preset)")
    words = "the same seeds for every model; medians are compared (default: 0 1 2 3 4; of SST-2 and IMDb the first)"
    parser.add_argument("--seeds", type=int, nargs="+", metavar="N", help=words)
    parser.add_argument("--finetune-flags", default="", metavar="FLAGS", help="for every fine-tuning, in one word: '--epochs 1'")
    add_jobs_flag(parser)
    parser.add_argument("--keep-models", action="store_true", help="keep the checkpoints, in DIR/models")
    parser.add_argument("--run-file", type=Path, metavar="DIR", help="write the run files to this folder as well")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and the expected time, and run nothing")
    return parser
