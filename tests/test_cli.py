"""The command itself: its help, its table of verbs, its errors.  What each verb does is tested beside the verb."""

from __future__ import annotations

import ast
import errno
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import pocketqa
from pocketqa import __main__ as command
from pocketqa.errors import DataError

ROOT = Path(__file__).parent.parent
APPLICATIONS = ("distillation", "mobile_export", "service", "loadtest")
TRAINING = ("pretrain", "distill", "finetune", "grow", "student")  # need the extra `train` even for their help
HEAVY = ("torch", "transformers", "fastapi", "uvicorn", "openvino", "locust", "coremltools", "datasets")


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)


def stand_in(monkeypatch: pytest.MonkeyPatch, verb: Callable[[list[str]], int]) -> None:
    """Put a verb of the test's own into the table, through a module that exists."""
    monkeypatch.setattr(command, "stand_in_verb", verb, raising=False)
    monkeypatch.setitem(command.VERBS, "try", ("pocketqa.__main__:stand_in_verb", "a verb of this test"))


@pytest.mark.parametrize("flag", ["--help", "-h", "help"])
def test_help_lists_every_verb_with_its_line(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([flag]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "usage: pocketqa [--help] [--version] VERB ..."
    width = max(map(len, command.VERBS))
    for verb, (_, line) in command.VERBS.items():
        assert f"  {verb:<{width}}  {line}" in lines


def test_no_verb_is_a_usage_error_with_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "usage: pocketqa" in captured.err


def test_version_is_the_package_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--version"]) == 0
    assert capsys.readouterr().out == f"pocketqa {pocketqa.__version__}\n"


@pytest.mark.parametrize(("word", "nearest"), [("serv", "serve"), ("evalute", "evaluate"), ("pakage", "package"), ("exprot", "export")])
def test_an_unknown_verb_suggests_the_nearest(word: str, nearest: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([word]) == 2
    message = capsys.readouterr().err
    assert f"found {word!r}" in message
    assert f"Did you mean {nearest!r}?" in message


def test_a_word_like_none_gets_the_list_without_a_guess(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["xyzzy"]) == 2
    message = capsys.readouterr().err
    assert "Did you mean" not in message
    assert "serve, answer" in message


@pytest.mark.parametrize("verb", command.VERBS)
def test_every_verb_of_the_table_exists(verb: str) -> None:
    target, line = command.VERBS[verb]
    module, _, function = target.partition(":")
    file = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    assert file.is_file(), f"{target} should stand in {file.relative_to(ROOT)}"
    defined = {node.name for node in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)}
    assert function in defined
    assert line
    assert line[0].islower()
    assert not line.endswith(".")


@pytest.mark.parametrize("verb", [verb for verb in command.VERBS if verb not in TRAINING])
def test_help_of_a_verb_imports_nothing_heavy(verb: str) -> None:
    code = (
        "import sys\nfrom pocketqa.__main__ import main\n"
        f"try:\n    status = main([{verb!r}, '--help'])\nexcept SystemExit as end:\n    status = end.code\n"
        f"print('status', status, 'imported', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "status 0 imported []", done.stdout
    assert f"usage: pocketqa {verb}" in done.stdout


def test_help_imports_no_application() -> None:
    code = (
        "import sys\nfrom pocketqa.__main__ import main\nmain(['--help'])\n"
        f"print('imported', [name for name in {APPLICATIONS + HEAVY!r} if name in sys.modules])"
    )
    done = run_python(code)
    assert done.stdout.splitlines()[-1] == "imported []", done.stdout + done.stderr


def test_arguments_and_status_pass_through(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    def verb(argv: list[str]) -> int:
        seen.append(argv)
        return 3

    stand_in(monkeypatch, verb)
    assert command.main(["try", "--flag", "value"]) == 3
    assert seen == [["--flag", "value"]]


def test_a_deliberate_error_is_one_line_and_status_2(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def verb(argv: list[str]) -> int:
        raise DataError("expected a list in 'data', found a number")

    stand_in(monkeypatch, verb)
    assert command.main(["try"]) == 2
    assert capsys.readouterr().err == "pocketqa try: expected a list in 'data', found a number\n"


def test_a_place_that_may_not_be_read_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def verb(argv: list[str]) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", "models/mine")  # as the system raises it

    stand_in(monkeypatch, verb)
    assert command.main(["try"]) == 2
    assert capsys.readouterr().err.startswith("pocketqa try: models/mine: Permission denied; this user may not")


def test_an_interrupt_is_status_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def verb(argv: list[str]) -> int:
        raise KeyboardInterrupt

    stand_in(monkeypatch, verb)
    assert command.main(["try"]) == 130
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize(("module", "extra"), [("coremltools.models", "export"), ("torch", "train"), ("openvino", "openvino")])
def test_a_missing_extra_is_named(module: str, extra: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def verb(argv: list[str]) -> int:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)  # as the import statement raises it

    stand_in(monkeypatch, verb)
    assert command.main(["try"]) == 2
    message = capsys.readouterr().err
    assert repr(module.partition(".")[0]) in message
    assert f"pip install 'pocketqa[{extra}]'" in message


def test_a_module_missing_by_mistake_is_not_taken_for_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(command.VERBS, "try", ("pocketqa.not_there:main", "a mistake"))
    with pytest.raises(ModuleNotFoundError, match=r"pocketqa\.not_there"):
        command.main(["try"])


def test_a_verb_that_this_install_does_not_hold_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(command.VERBS, "try", ("an_absent_application.train:main", "not in this install"))
    assert command.main(["try"]) == 2
    assert "holds no package 'an_absent_application'" in capsys.readouterr().err


def test_a_reader_that_leaves_early_ends_the_command_quietly() -> None:
    code = (
        "import pocketqa.__main__ as command\n"
        "def verb(argv):\n    for number in range(200_000):\n        print(number)\n    return 0\n"
        "command.stand_in_verb = verb\n"
        "command.VERBS['try'] = ('pocketqa.__main__:stand_in_verb', '')\n"
        "raise SystemExit(command.main(['try']))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "0\n"
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(timeout=60) == 141


def test_python_m_pocketqa_is_the_same_command() -> None:
    done = subprocess.run([sys.executable, "-m", "pocketqa", "serv"], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 2
    assert "Did you mean 'serve'?" in done.stderr
