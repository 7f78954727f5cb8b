"""The README says what is there: its commands parse, its paths and its tree exist."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from pocketqa.__main__ import VERBS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PACKAGES = ("pocketqa", "distillation", "mobile_export", "service", "loadtest")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def shell_commands() -> list[list[str]]:
    lines = "\n".join(blocks("sh")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def test_there_are_commands_to_check() -> None:
    assert len([words for words in shell_commands() if words[0] == "pocketqa"]) > 10


def program_of(words: list[str]) -> tuple[str, ...]:
    """The verb, and what leads to another program of it with a --help of its own."""
    own = ["--task", "sst2"] if "--task" in words else ["--workload", "training"] if "training" in words else []
    return (words[1], *own, *(["--preset", "tasks"] if "tasks" in words else []))


@pytest.mark.parametrize("program", sorted({program_of(words) for words in shell_commands() if words[0] == "pocketqa"}), ids=" ".join)
def test_every_flag_that_is_shown_is_one_of_its_program(program: tuple[str, ...]) -> None:
    assert program[0] in VERBS
    done = subprocess.run([sys.executable, "-m", "pocketqa", *program, "--help"], capture_output=True, text=True, cwd=ROOT, timeout=120)
    known = {*re.findall(r"--[a-z][a-z0-9-]*", done.stdout), "--workload"}
    used = {word for words in shell_commands() if words[0] == "pocketqa" and program_of(words) == program for word in words if word.startswith("--")}
    assert used - known == set(), done.stdout


def test_every_verb_is_mentioned() -> None:
    assert {verb for verb in VERBS if not re.search(rf"\bpocketqa {verb}\b", README)} == set()


def test_python_examples_compile() -> None:
    for block in blocks("python"):
        ast.parse(block)


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert {words[1] for words in shell_commands() if words[0] == "make"} <= targets


def test_every_extra_is_in_the_table() -> None:
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]) - {"dev"}
    assert {extra for extra in extras if f"\n| `{extra}` |" not in README} == set()


def test_the_tree_holds_every_file_of_the_code_and_no_other() -> None:
    tree = README[README.index("## The tree") :]
    shown: set[str] = set()
    folders: list[str] = []
    for line in tree.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        name = line.split()[0] if line.split() else ""
        if name.endswith("/"):
            folders = [*folders[:depth], name]
        elif name.endswith(".py") and depth:
            shown.add("".join([*folders[:depth], name]))
    there = {file.relative_to(ROOT).as_posix() for package in PACKAGES for file in (ROOT / package).rglob("*.py")}
    empty = {path for path in there if path.endswith("__init__.py")}  # they hold a docstring; two of them hold names and are shown
    assert shown - there == set(), "in the README's tree, but not there"
    assert there - shown - empty == set(), "there, but not in the README's tree"
