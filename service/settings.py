"""Settings of the service: one table of fields, read from flags, then from POCKETQA_* variables, then from defaults.

Every problem is gathered and reported at once, each with its key, the value found and what was expected.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any

from pocketqa.errors import OptionsError
from pocketqa.runtimes import ENGINES

PREFIX = "POCKETQA_"
CHECKOUT = Path(__file__).resolve().parent.parent
# An installed package carries no weights; there the default is a folder of that name where the command is run.
MODELS = CHECKOUT / "models" if (CHECKOUT / "pyproject.toml").is_file() else Path("models")

Parser = Callable[[str], object]


def _whole(low: int, high: int) -> tuple[Parser, str]:
    def parse(text: str) -> int:
        # int() alone would take " 8_0 " and Arabic-Indic digits, which nobody means in a settings file.
        if not (text.isascii() and text.isdigit()) or not low <= int(text) <= high:
            raise ValueError
        return int(text)

    return parse, f"a whole number between {low} and {high}"


def _one_of(*choices: str) -> tuple[Parser, str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError
        return text

    return parse, "one of " + ", ".join(choices)


def _name(text: str) -> str:
    if not text.strip() or any(character.isspace() for character in text):
        raise ValueError
    return text


def _path(text: str) -> Path:
    if not text.strip():
        raise ValueError
    return Path(text)


def _setting(default: object, parser: tuple[Parser, str], help: str) -> Any:
    return field(default=default, metadata={"parse": parser[0], "expected": parser[1], "help": help})


_FOLDER = (_path, "the path of a model folder")
_HOST = (_name, "a host name or address, such as 127.0.0.1")


@dataclass(frozen=True, slots=True)
class Settings:
    """What the service is told.  Limits bound the work of one request before it is begun."""

    student: Path = _setting(MODELS / "student", _FOLDER, "folder of the student, as made by `pocketqa package`")  # noqa: RUF009 - paths are immutable
    teacher: Path = _setting(MODELS / "teacher", _FOLDER, "folder of the teacher, with the student's vocabulary")  # noqa: RUF009
    engine: str = _setting("auto", _one_of("auto", *ENGINES), "inference engine")
    precision: str | None = _setting(None, _one_of("fp32", "bf16"), "precision of the arithmetic; unset: the engine's own")
    threads: int | None = _setting(None, _whole(1, 1024), "threads of one forward pass; unset: all usable cores")
    host: str = _setting("127.0.0.1", _HOST, "address to listen on")
    port: int = _setting(8000, _whole(0, 65535), "port to listen on; 0 takes a free one")
    max_body_bytes: int = _setting(1 << 20, _whole(1024, 1 << 30), "largest request body in bytes")
    max_question_chars: int = _setting(1_000, _whole(1, 1_000_000), "longest question in characters (Unicode code points)")
    max_context_chars: int = _setting(200_000, _whole(1, 100_000_000), "longest context in characters, all passages together")
    max_contexts: int = _setting(64, _whole(1, 100_000), "most passages of one request")
    max_windows: int = _setting(256, _whole(1, 100_000), "most windows (model inputs) of one request")
    max_top_k: int = _setting(20, _whole(1, 100), "most answers of one request")

    @classmethod
    def read(cls, argv: Sequence[str] = (), environ: Mapping[str, str] | None = None) -> Settings:
        """Settings from flags and environment.  Raises OptionsError naming every unusable value; --help exits as argparse does."""
        environ = os.environ if environ is None else environ
        flags = vars(_argument_parser().parse_args(list(argv)))
        values: dict[str, Any] = {}
        problems: list[str] = []
        for item in fields(cls):
            variable = PREFIX + item.name.upper()
            for source, text in ((_flag(item), flags[item.name]), (variable, environ.get(variable))):
                if text is None:
                    continue
                try:
                    values[item.name] = item.metadata["parse"](text)
                except ValueError:
                    problems.append(f"{source}: expected {item.metadata['expected']}, found {text!r}")
                break
        if problems:
            raise OptionsError("; ".join(problems))
        return cls(**values)


def _flag(item: Field[Any]) -> str:
    return "--" + item.name.replace("_", "-")


def _argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pocketqa serve",
        description="Serve a teacher and a student side by side: a page at /, the API under /v1, its description at /openapi.json.",
        epilog="Each flag may be given as an environment variable instead: --max-windows is POCKETQA_MAX_WINDOWS. A flag wins over its variable.",
        allow_abbrev=False,
    )
    for item in fields(Settings):
        default = item.default if item.default is not None else "unset"
        if isinstance(default, Path):
            default = f"{default.parent.name}/{default.name}, of the checkout where there is one"
        parser.add_argument(_flag(item), metavar="VALUE", help=f"{item.metadata['help']} (default: {default})")
    return parser
