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
        "max_requests": "13", "workers": "12", "batching": "off", "max_batch_tokens": "512", "deadline_seconds": "5", "max_queue_seconds": "2.5",
        "drain_seconds": "0", "shadow": "0.05",
        "api_keys_file": "keys", "allow_public": "yes", "trusted_hosts": "qa.example.org, *.Example.net", "cors_origins": "https://a.example,http://b:3",
        "max_connections": "12", "header_seconds": "1.5", "body_seconds": "2", "idle_seconds": "3", "access_log": "off",
    }  # fmt: skip
    assert set(texts) == {field.name for field in dataclasses.fields(Settings)}
    wanted = Settings(
        student=Path("a/b"), teacher=Path("/c d"), engine="onnxruntime", precision="fp32", threads=3, host="::1", port=0,
        max_body_bytes=2048, max_question_chars=7, max_context_chars=8, max_contexts=9, max_windows=10, max_top_k=11,
        max_requests=13, workers=12, batching=False, max_batch_tokens=512, deadline_seconds=5.0, max_queue_seconds=2.5, drain_seconds=0.0,
        shadow=0.05, api_keys_file=Path("keys"), allow_public=True, trusted_hosts=("qa.example.org", "*.example.net"),
        cors_origins=("https://a.example", "http://b:3"), max_connections=12, header_seconds=1.5, body_seconds=2.0, idle_seconds=3.0,
        access_log=False,
    )  # fmt: skip
    assert Settings.read([], {f"POCKETQA_{name.upper()}": text for name, text in texts.items()}) == wanted
    assert Settings.read([f"--{name.replace('_', '-')}={text}" for name, text in texts.items()], {}) == wanted


def test_origins_are_kept_as_browsers_send_them() -> None:
    given = "https://App.Example.org:443, http://b:80,https://c:80,http://[::1]:8080"
    assert Settings.read([], {"POCKETQA_CORS_ORIGINS": given}).cors_origins == (
        "https://app.example.org",
        "http://b",
        "https://c:80",
        "http://[::1]:8080",
    )


def test_a_flag_wins_over_its_variable_even_a_bad_one() -> None:
    assert Settings.read(["--port", "9000"], {"POCKETQA_PORT": "eight"}).port == 9000


def test_other_variables_are_left_alone() -> None:
    links = {"POCKETQA_SERVICE_HOST": "10.0.0.1", "POCKETQA_SERVICE_PORT": "80", "POCKETQA_PORT_80_TCP": "tcp://10.0.0.1:80"}  # of Kubernetes
    others = {"POCKETQA_DATA": "/data", "POCKETQA_KEY": "k", "POCKETQA_BIND": "0.0.0.0", "POCKETQA_CHROMIUM": "c", "PORT": "1"}
    assert Settings.read([], others | links) == Settings()


@pytest.mark.parametrize(("slip", "meant"), [("API_KEY_FILE", "API_KEYS_FILE"), ("CORS_ORIGIN", "CORS_ORIGINS"), ("THREAD", "THREADS")])
def test_a_misspelt_variable_is_named_with_what_was_meant(slip: str, meant: str) -> None:
    with pytest.raises(OptionsError, match=f"^POCKETQA_{slip}: no such setting; did you mean POCKETQA_{meant}\\?$"):
        Settings.read([], {f"POCKETQA_{slip}": "keys"})


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
        ("POCKETQA_PRECISION", "int4", "one of fp32, bf16, int8"),
        ("POCKETQA_HOST", "", "a host name or address, such as 127.0.0.1"),
        ("POCKETQA_HOST", "my host", "a host name or address, such as 127.0.0.1"),
        ("POCKETQA_STUDENT", " ", "the path of a model folder"),
        ("POCKETQA_ALLOW_PUBLIC", "maybe", "yes or no"),
        ("POCKETQA_BODY_SECONDS", "-1", "seconds between 0.1 and 600"),
        ("POCKETQA_BODY_SECONDS", "1e3", "seconds between 0.1 and 600"),
        ("POCKETQA_BODY_SECONDS", "nan", "seconds between 0.1 and 600"),
        ("POCKETQA_SHADOW", "5%", "a share between 0 and 1, such as 0.05"),
        ("POCKETQA_SHADOW", "1.01", "a share between 0 and 1, such as 0.05"),
        ("POCKETQA_SHADOW", "", "a share between 0 and 1, such as 0.05"),
        ("POCKETQA_TRUSTED_HOSTS", "a b", "host names with commas between them, such as qa.example.org,*.example.net"),
        ("POCKETQA_TRUSTED_HOSTS", "http://a", "host names with commas between them, such as qa.example.org,*.example.net"),
        ("POCKETQA_CORS_ORIGINS", "*", "origins with commas between them, such as https://app.example.org,http://localhost:3000"),
        ("POCKETQA_CORS_ORIGINS", "https://a/b", "origins with commas between them, such as https://app.example.org,http://localhost:3000"),
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


def test_a_switch_may_stand_alone() -> None:
    assert Settings.read(["--allow-public"], {}).allow_public
    assert not Settings.read(["--allow-public", "no"], {"POCKETQA_ALLOW_PUBLIC": "1"}).allow_public
