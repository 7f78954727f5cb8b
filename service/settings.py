"""Settings of the service: one table of fields, read from flags, then from POCKETQA_* variables, then from defaults.

Every problem is gathered and reported at once, each with its key, the value found and what was expected.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any

from pocketqa.errors import OptionsError
from pocketqa.runtimes import ENGINES
from service.edge.keys import new_key

PREFIX = "POCKETQA_"
_SLIP = 0.8  # difflib's ratio of two names: API_KEY_FILE and API_KEYS_FILE have 0.96
CHECKOUT = Path(__file__).resolve().parent.parent
MOST_REQUESTS = 1_000  # of one body, whatever the settings
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


def _seconds(low: float, high: float) -> tuple[Parser, str]:
    def parse(text: str) -> float:
        if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", text, re.ASCII) or not low <= float(text) <= high:
            raise ValueError
        return float(text)

    return parse, f"seconds between {low:g} and {high:g}"


def _share(text: str) -> float:
    if not re.fullmatch(r"[0-9]*\.?[0-9]+", text, re.ASCII) or not 0 <= float(text) <= 1:
        raise ValueError
    return float(text)


def _yes_or_no(text: str) -> bool:
    if text.lower() not in _WORDS:
        raise ValueError
    return _WORDS[text.lower()]


def _host_names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip().lower() for name in text.split(","))
    if not all(re.fullmatch(r"(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*", name) for name in names):
        raise ValueError
    return names


def _origins(text: str) -> tuple[str, ...]:
    origins = tuple(origin.strip().lower() for origin in text.split(","))
    if not all(re.fullmatch(r"https?://[a-z0-9._\[\]:-]+", origin) for origin in origins):
        raise ValueError
    return tuple(re.sub(r"^(http:.*):80$|^(https:.*):443$", r"\1\2", origin) for origin in origins)  # as browsers send them


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
_FILE = (_path, "the path of a file")
_WORDS = {"yes": True, "true": True, "on": True, "1": True, "no": False, "false": False, "off": False, "0": False}
_SWITCH = (_yes_or_no, "yes or no")
_HOSTS = (_host_names, "host names with commas between them, such as qa.example.org,*.example.net")
_ORIGINS = (_origins, "origins with commas between them, such as https://app.example.org,http://localhost:3000")


@dataclass(frozen=True, slots=True)
class Settings:
    """What the service is told.  Limits bound the work of one request before it is begun."""

    student: Path = _setting(MODELS / "student", _FOLDER, "folder of the student, as made by `pocketqa package`")  # noqa: RUF009 - paths are immutable
    teacher: Path = _setting(MODELS / "teacher", _FOLDER, "folder of the teacher, with the student's vocabulary")  # noqa: RUF009
    engine: str = _setting("auto", _one_of("auto", *ENGINES), "inference engine")
    precision: str | None = _setting(
        None,
        _one_of("fp32", "bf16", "int8"),
        "precision of the arithmetic; unset: int8 where the folder holds such a form and the engine is auto, else its own",
    )
    threads: int | None = _setting(None, _whole(1, 1024), "threads of one forward pass; unset: the usable cores, shared out to the workers")
    host: str = _setting("127.0.0.1", _HOST, "address to listen on")
    port: int = _setting(8000, _whole(0, 65535), "port to listen on; 0 takes a free one")
    max_body_bytes: int = _setting(1 << 20, _whole(1024, 1 << 30), "largest request body in bytes")
    max_question_chars: int = _setting(1_000, _whole(1, 1_000_000), "longest question in characters (Unicode code points)")
    max_context_chars: int = _setting(200_000, _whole(1, 100_000_000), "longest context in characters, all passages together")
    max_contexts: int = _setting(64, _whole(1, 100_000), "most passages of one request")
    max_windows: int = _setting(256, _whole(1, 100_000), "most windows (model inputs) of one request")
    max_top_k: int = _setting(20, _whole(1, 100), "most answers of one request")
    max_requests: int = _setting(64, _whole(1, MOST_REQUESTS), "most questions of one body, where a list of them is taken")
    workers: int | None = _setting(None, _whole(1, 64), "processes that compute; unset: one, or one for every eight usable cores")
    batching: bool = _setting(True, _SWITCH, "compute windows of several requests together where that is quicker than one after the other")
    max_batch_tokens: int = _setting(4096, _whole(16, 1 << 20), "most positions (windows times their padded length) of one forward pass")
    deadline_seconds: float = _setting(30.0, _seconds(0.1, 3600), "time in which a request is answered, or given up with a 503")
    max_queue_seconds: float = _setting(10.0, _seconds(0.1, 3600), "predicted wait for a forward pass above which a request gets a 429")
    shadow: float = _setting(
        0.0,
        (_share, "a share between 0 and 1, such as 0.05"),
        "share of the student's requests put to the teacher too, by an idle process, to compare",
    )
    drain_seconds: float = _setting(1.0, _seconds(0, 600), "time that the service goes on serving, not ready any more, after SIGTERM")
    api_keys_file: Path | None = _setting(  # noqa: RUF009 - paths are immutable
        None, _FILE, "file of key hashes, a line for each from --new-key, read again when it changes; unset: nobody needs a key"
    )
    allow_public: bool = _setting(False, _SWITCH, "listen on an address that other machines reach although no key is needed")
    trusted_hosts: tuple[str, ...] = _setting((), _HOSTS, "names of this service in a Host header, besides addresses and names without a dot")
    cors_origins: tuple[str, ...] = _setting((), _ORIGINS, "other sites whose pages may call this service from a browser")
    max_connections: int = _setting(1024, _whole(1, 100_000), "most connections at a time; one more is answered 503 and closed")
    header_seconds: float = _setting(10.0, _seconds(0.1, 600), "time in which the headers of a request have to arrive")
    body_seconds: float = _setting(10.0, _seconds(0.1, 600), "time in which the body of a request has to arrive, after its headers")
    idle_seconds: float = _setting(30.0, _seconds(0.1, 3600), "time after which a connection without a request, or that takes no answer, is closed")
    access_log: bool = _setting(True, _SWITCH, "a line of JSON on standard error for each request, without texts")

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
        known = [item.name.upper() for item in fields(cls)]
        for variable in sorted(environ):
            # Others may have our prefix (Kubernetes' links to services, for one); a name that is nearly one of ours is a slip.
            name = variable.removeprefix(PREFIX)
            if name != variable and name not in known and (near := difflib.get_close_matches(name, known, 1, _SLIP)):
                problems.append(f"{variable}: no such setting; did you mean {PREFIX}{near[0]}?")
        if problems:
            raise OptionsError("; ".join(problems))
        return cls(**values)


def _flag(item: Field[Any]) -> str:
    return "--" + item.name.replace("_", "-")


class _NewKey(argparse.Action):
    """Make a key, and end: its line goes to standard output, so that `>> FILE` adds it, and the key itself to the terminal."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: str | None = None) -> None:
        key, line = new_key(values)
        print(line)
        print(f"{key}\nis the key, shown this once; the line on standard output belongs into the file that --api-keys-file names.", file=sys.stderr)
        parser.exit()


def _argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pocketqa serve",
        description="Serve a teacher and a student side by side: a page at /, the API under /v1, its description at /openapi.json.",
        epilog="Each flag may be given as an environment variable instead: --max-windows is POCKETQA_MAX_WINDOWS. A flag wins over its variable.",
        allow_abbrev=False,
    )
    for item in fields(Settings):
        default = item.default if item.default not in (None, ()) else "unset"
        if isinstance(default, Path):
            default = f"{default.parent.name}/{default.name}, of the checkout where there is one"
        if isinstance(default, bool):
            default = "yes" if default else "no"
        # A switch may stand alone: --allow-public means --allow-public yes.
        alone: dict[str, Any] = {"nargs": "?", "const": "yes"} if item.metadata["parse"] is _yes_or_no else {}
        parser.add_argument(_flag(item), metavar="VALUE", help=f"{item.metadata['help']} (default: {default})", **alone)
    parser.add_argument("--new-key", action=_NewKey, metavar="NAME", help="make an API key, print it and the line for its file, and end")
    return parser
