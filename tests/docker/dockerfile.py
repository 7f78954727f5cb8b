"""Runs a Dockerfile without Docker: every instruction, in a folder that stands for the image's root.

Absolute paths of the image (/src, /opt, /srv) are taken below that folder.  A stage's folder moves aside when the next stage begins, so that what
is not copied is not there.  Enough of the language for the images of this project; an instruction that it does not know is an error, never skipped.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

IMAGE_FOLDERS = ("src", "opt", "srv", "data")
# What of this machine an install needs: where packages come from, and how they are reached.
PASSED_ON = re.compile(r"(PIP_|SSL_|REQUESTS_).*|HOME|https?_proxy|HTTPS?_PROXY|no_proxy|NO_PROXY")


@dataclass
class Image:
    """The last stage: its folder, environment, commands and user."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict)
    arguments: dict[str, str] = field(default_factory=dict)  # of the build, seen by RUN alone
    folder: Path = Path()
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)
    user: str = "root"
    ports: list[int] = field(default_factory=list)

    def start(self, *arguments: str) -> list[str]:
        """The words that start it; arguments take the place of CMD, as those of `docker run` do."""
        return [*self.entrypoint, *(arguments or self.command)]

    def place(self, path: str) -> Path:
        """Where a path of the image lies here."""
        return self.root / path.lstrip("/") if path.startswith("/") else self.folder / path

    def here(self, text: str) -> str:
        """The text with the image's absolute paths replaced by ours."""
        return re.sub(rf"(?<![\w./-])/(?=(?:{'|'.join(IMAGE_FOLDERS)})(?:/|\b))", f"{self.root}/", text)


def instructions(text: str) -> list[tuple[str, str]]:
    """(INSTRUCTION, rest) of each line; continued lines joined, comments dropped."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(word.upper(), rest.strip()) for word, _, rest in (line.strip().partition(" ") for line in joined.splitlines())]


def build(dockerfile: Path, context: Path, root: Path, arguments: Mapping[str, str] | None = None) -> Image:
    """Run every instruction; `root` must not exist.  arguments: as --build-arg gives them.

    Raises AssertionError with the output of a command that fails, and for an argument that the Dockerfile does not take.
    """
    given = dict(arguments or {})
    text = dockerfile.read_text(encoding="utf-8")
    taken = {rest.partition("=")[0] for instruction, rest in instructions(text) if instruction == "ARG"}
    assert set(given) <= taken, f"{dockerfile.name} takes {sorted(taken)}, found {sorted(given)}"
    stages: dict[str, Path] = {}
    image = Image(root)
    name = ""
    for instruction, rest in instructions(text):
        if instruction == "FROM":
            if name:
                stages[name] = root.rename(root.with_name(f"{root.name}-{name}"))
            name = dict(enumerate(rest.split())).get(2, "final")
            image = _base(rest.split()[0], root)
        elif instruction == "ARG":
            argument, _, default = rest.partition("=")
            image.arguments[argument] = given.get(argument, "".join(shlex.split(default)))
        else:
            _run_instruction(image, instruction, rest, context, stages)
    return image


def run_environment(image: Image) -> dict[str, str]:
    """Exactly the image's variables."""
    return dict(image.environment)


def _base(base: str, root: Path) -> Image:
    """python:X.Y-slim: an interpreter called python on the PATH, and nothing else."""
    assert re.fullmatch(r"python:3\.\d+-slim", base), f"expected a python:3.X-slim base, found {base}"
    bin_folder = root.parent / "base-bin"
    bin_folder.mkdir(exist_ok=True)
    python = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    if not (bin_folder / "python").exists():
        (bin_folder / "python").symlink_to(python)
    root.mkdir()
    return Image(root, {"PATH": f"{bin_folder}:/usr/bin:/bin"}, folder=root)


def _run_instruction(image: Image, instruction: str, rest: str, context: Path, stages: dict[str, Path]) -> None:
    match instruction:
        case "WORKDIR":
            image.folder = image.place(rest)
            image.folder.mkdir(parents=True, exist_ok=True)
        case "COPY":
            _copy(image, rest, context, stages)
        case "RUN":
            _run(image, rest)
        case "ENV":
            for assignment in shlex.split(rest):
                key, _, value = assignment.partition("=")
                image.environment[key] = image.here(value.replace("$PATH", image.environment["PATH"]))
        case "USER":
            image.user = rest
        case "EXPOSE":
            image.ports.append(int(rest))
        case "HEALTHCHECK":
            image.health = [image.here(word) for word in json.loads(rest[rest.index("CMD") + 3 :])]
        case "CMD":
            image.command = [image.here(word) for word in json.loads(rest)]
        case "ENTRYPOINT":
            image.entrypoint = [image.here(word) for word in json.loads(rest)]
        case _:
            raise AssertionError(f"the instruction {instruction} is not known here")


def _run(image: Image, command: str) -> None:
    environment = {key: value for key, value in os.environ.items() if PASSED_ON.fullmatch(key)} | image.arguments | image.environment
    done = subprocess.run(["/bin/sh", "-c", image.here(command)], cwd=image.folder, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, f"RUN {command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


def _copy(image: Image, rest: str, context: Path, stages: dict[str, Path]) -> None:
    words = rest.split()
    flags = dict(word.removeprefix("--").split("=") for word in words if word.startswith("--"))
    *sources, target = [word for word in words if not word.startswith("--")]
    ignored = None
    for source in sources:
        if "from" in flags:
            origin = stages[flags["from"]] / source.lstrip("/")
        else:
            origin = context / source
            assert in_context(source, context / ".dockerignore"), f"{source} is not in the build context: see .dockerignore"
            ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
        place = image.place(target)
        if origin.is_dir():  # Docker copies what is in a folder, not the folder
            shutil.copytree(origin, place, symlinks=True, dirs_exist_ok=True, ignore=ignored)
        else:
            place = place / origin.name if target.endswith("/") else place
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(origin, place)


def in_context(source: str, dockerignore: Path) -> bool:
    """Whether a .dockerignore of the form `*`, `!name`, `**/name` lets a top-level name in."""
    lines = [line.strip() for line in dockerignore.read_text(encoding="utf-8").splitlines() if line.strip() and not line.startswith("#")]
    assert lines[0] == "*"
    assert all(line.startswith(("!", "**/")) for line in lines[1:])
    return f"!{source.removeprefix('./').split('/')[0]}" in lines
