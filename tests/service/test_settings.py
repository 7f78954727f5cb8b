"""Settings: flags over environment over defaults, and errors that name key, value and what was expected."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from pocketqa.errors import OptionsError
from service.settings import Settings


def test_defaults_are_the_bundled_pair_on_the_loopback_address() -> None:
    settings = Settings.read([], {})
    root = Path(__file__).parents[2]
    assert (settings.teacher, settings.student) == (root / "models" / "teacher", root / "models" / "student")
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)
    assert (settings.engine, settings.precision, settings.threads) == ("auto", None, None)
    assert settings == Settings()


def test_every_field_is_a_variable_and_a_flag() -> None:
    texts = {
        "student": "a/b", "teacher": "/c d", "engine": "onnxruntime", "precision": "fp32", "threads": "3", "host": "::1", "port": "0",
        "max_body_bytes": "2048", "max_question_chars": "7", "max_context_chars": "8", "max_contexts": "9", "max_windows": "10", "max_top_k": "11",
    }  # fmt: skip
    assert set(texts) == {field.name for field in dataclasses.fields(Settings)}
    wanted = Settings(Path("a/b"), Path("/c d"), "onnxruntime", "fp32", 3, "::1", 0, 2048, 7, 8, 9, 10, 11)
    assert Settings.read([], {f"POCKETQA_{name.upper()}": text for name, text in texts.items()}) == wanted
    assert Settings.read([f"--{name.replace('_', '-')}={text}" for name, text in texts.items()], {}) == wanted


def test_a_flag_wins_over_its_variable_even_a_bad_one() -> None:
    assert Settings.read(["--port", "9000"], {"POCKETQA_PORT": "eight"}).port == 9000


def test_other_variables_are_left_alone() -> None:
    assert Settings.read([], {"POCKETQA_DATA": "/data", "PORT": "1"}) == Settings()


@pytest.mark.parametrize(
    ("variable", "text", "expected"),
    [
        ("POCKETQA_PORT", "eight", "a whole number between 0 and 65535"),
        ("POCKETQA_PORT", "65536", "a whole number between 0 and 65535"),
        ("POCKETQA_PORT", "-1", "a whole number between 0 and 65535"),
        ("POCKETQA_PORT", "8_000", "a whole number between 0 and 65535"),
        ("POCKETQA_PORT", "٨٠", "a whole number between 0 and 65535"),
        ("POCKETQA_PORT", "", "a whole number between 0 and 65535"),
        ("POCKETQA_THREADS", "0", "a whole number between 1 and 1024"),
        ("POCKETQA_ENGINE", "tensorrt", "one of auto, onnxruntime, openvino, pytorch"),
        ("POCKETQA_PRECISION", "int8", "one of fp32, bf16"),
        ("POCKETQA_HOST", "", "a host name or address, such as 127.0.0.1"),
        ("POCKETQA_HOST", "my host", "a host name or address, such as 127.0.0.1"),
        ("POCKETQA_STUDENT", " ", "the path of a model folder"),
    ],
)
def test_an_unusable_value_is_named(variable: str, text: str, expected: str) -> None:
    with pytest.raises(OptionsError) as caught:
        Settings.read([], {variable: text})
    assert str(caught.value) == f"{variable}: expected {expected}, found {text!r}"


def test_all_unusable_values_are_told_at_once() -> None:
    with pytest.raises(OptionsError) as caught:
        Settings.read(["--port", "x"], {"POCKETQA_THREADS": "many", "POCKETQA_PORT": "y"})
    assert str(caught.value).split("; ") == [
        "POCKETQA_THREADS: expected a whole number between 1 and 1024, found 'many'",
        "--port: expected a whole number between 0 and 65535, found 'x'",
    ]


def test_help_names_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        Settings.read(["--help"], {})
    assert exited.value.code == 0
    text = capsys.readouterr().out
    assert all("--" + field.name.replace("_", "-") in text for field in dataclasses.fields(Settings))
    assert "POCKETQA_MAX_WINDOWS" in text
