"""What every training verb shares: its output folder, what it keeps on the way, and how it finishes."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from distillation.training import STOPPED, card, checkpoints, processes
from distillation.training.keeping import Keeping
from distillation.training.loop import Stopped
from pocketqa.errors import DataError, TrainingError
from pocketqa.folders import MANIFEST, write_manifest
from pocketqa.runs import RunFile, write
from pocketqa.types import JSON, NoAnswer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WORDS = {
    "save_every": "seconds between states from which a stopped run goes on",
    "log_every": "seconds between lines of progress",
    "checkpoint_every": "keep a checkpoint after each so many steps, in DIR/checkpoint-STEP (0: none)",
    "keep": "so many of those, the last ones",
    "evaluate_every": "take the development score after each so many steps; the best is kept in DIR/best (0: never)",
}


def named_folder(text: str) -> Path:
    """The folder of --out: "." has no name for what is left beside it."""
    path = Path(text)
    if path.name in ("", ".."):
        raise argparse.ArgumentTypeError(f"expected a folder with a name of its own, such as out/student, found {text!r}")
    return path


@dataclass(frozen=True, slots=True)
class Stage:
    """Where a training leaves its result, and what it keeps on the way."""

    out: Path
    name: str  # in manifest and model card
    keeping: Keeping
    run_file: Path | None = None
    license: str | None = None

    @property
    def work(self) -> Path:
        """The unfinished run; it becomes `out` at the end."""
        return self.keeping.folder

    @staticmethod
    def add_flags(parser: argparse.ArgumentParser) -> None:
        """--out, --name, --run-file, --license, and what is kept and told on the way."""
        parser.add_argument(
            "--out", required=True, type=named_folder, metavar="DIR", help="folder for the checkpoint; DIR.run holds the unfinished run"
        )
        parser.add_argument("--name", help="name in manifest and model card (default: the folder's)")
        parser.add_argument("--license", metavar="ID", help="licence in the model card, such as apache-2.0 (default: unknown)")
        parser.add_argument("--run-file", type=Path, metavar="PATH", help="write a run file to this folder or .json path")
        group = parser.add_argument_group("on the way")
        for item in dataclasses.fields(Keeping):
            if item.name in WORDS:
                words = f"{WORDS[item.name]} (default {item.default:g})"
                group.add_argument(_flag(item.name), type=type(item.default), default=item.default, metavar="N", help=words)
        group.add_argument("--tensorboard", action="store_true", help="write curves for TensorBoard to DIR.run/tensorboard")

    @classmethod
    def of(cls, given: argparse.Namespace) -> Stage:
        """From a parsed command line.  Raises TrainingError where --out holds something, or a number makes no sense."""
        if given.out.exists() and (not given.out.is_dir() or any(given.out.iterdir())):
            raise TrainingError(f"{given.out} is not empty (a finished checkpoint, perhaps). Give another --out or delete it.")
        values = {name: getattr(given, name) for name in (*WORDS, "tensorboard")}
        problems = [f"{_flag(name)} must be at least 0, found {value}" for name, value in values.items() if value < 0]
        if values["keep"] < 1:
            problems.append(f"--keep must be at least 1, found {values['keep']}")
        if problems:
            raise TrainingError("The command cannot be run: " + "; ".join(problems) + ".")
        keeping = Keeping(given.out.with_name(given.out.name + ".run"), **values)
        return cls(given.out, given.name or given.out.name, keeping, given.run_file, given.license)

    def begin(self, tokenizer_from: str) -> Path:
        """Make the work folder, or find the one of a stopped run, and put the tokenizer into it.  Returns the folder."""
        if processes.is_main():
            try:
                self.work.mkdir(parents=True, exist_ok=True)
                if self._kept_state.exists() and not self.keeping.state.exists():
                    os.replace(self._kept_state, self.keeping.state)
            except OSError as error:
                raise checkpoints.not_written(self.work, error) from error
            checkpoints.save_tokenizer(tokenizer_from, self.work)
        processes.wait()
        return self.work

    def finish(
        self,
        model: PreTrainedModel,
        *,
        tokenizer_from: str,
        parent: str,
        summary: JSON,
        seed: int,
        no_answer: NoAnswer | None = None,
        kind: str = "checkpoint",
    ) -> None:
        """Save model, tokenizer and model card, the manifest last, and put the folder in its place.  A kill at any point loses nothing.

        parent: hash of the weights it started from; summary: what the manifest says of the run.  Only the main process writes.
        The others do nothing here and do not wait (so the main one may call it alone); where they read `out` afterwards: processes.wait().
        Raises TrainingError where the disk is full; the same command then finishes.
        """
        if processes.is_main():
            model.eval()
            try:
                self._remove_leftovers()
                model.save_pretrained(self.work)
                if not (self.work / "tokenizer.json").exists():  # the source may be gone by now
                    checkpoints.save_tokenizer(tokenizer_from, self.work)
                card.write(self.work, self.name, tokenizer_from, summary, self.license)
                if self.keeping.state.exists():
                    os.replace(self.keeping.state, self._kept_state)  # until the checkpoint is in place
                write_manifest(self.work, kind=kind, name=self.name, parent=parent, config=summary, seed=seed, no_answer=no_answer)
                os.replace(self.work, self.out)
            except checkpoints.NOT_WRITTEN as error:
                raise checkpoints.not_written(self.work, error) from error
            shutil.rmtree(self._kept_state, ignore_errors=True)

    def write_run(self, run: RunFile) -> None:
        """Write the run file of the finished training where one is asked for.  Raises TrainingError where it cannot be written."""
        if self.run_file is None:
            return
        try:
            processes.say(f"run file: {write(run, self.run_file)}")
        except DataError as error:
            raise TrainingError(f"{error} The checkpoint in {self.out} is whole, and {self.out / MANIFEST} holds the numbers of the run.") from error

    @property
    def _kept_state(self) -> Path:
        return self.work.with_name(self.work.name + ".state")

    def _remove_leftovers(self) -> None:
        """Folders that a kill left half written."""
        for pattern in (".*.partial", ".*.previous", "state.partial", "state.old"):
            for path in self.work.glob(pattern):
                if path.name != "state.old" or self.keeping.state.exists():
                    shutil.rmtree(path)


def carry_out(stage: Stage, train: Callable[[], JSON], run_of: Callable[[JSON], RunFile], following: str) -> int:
    """Run a training; write its run file where one is asked for, print its summary and the next command.  Returns the exit status."""
    try:
        summary = train()
    except Stopped as stopped:
        processes.say(str(stopped))
        return STOPPED
    if processes.is_main():
        print(json.dumps(summary, sort_keys=True))  # first: a run file that cannot be written loses nothing
        if stage.run_file:
            stage.write_run(run_of(summary))
        processes.say(f"next: {following}")
    return 0


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
