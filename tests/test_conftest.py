"""The policy on skips, tried on sessions of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent

SKIPPING = """
import pytest

def test_passes():
    pass

def test_skips():
    pytest.skip({reason!r})
"""


def run_pytest(folder: Path, source: str, **environment: str) -> subprocess.CompletedProcess[str]:
    (folder / "conftest.py").write_text((HERE / "conftest.py").read_text(encoding="utf-8"), encoding="utf-8")
    (folder / "test_it.py").write_text(source, encoding="utf-8")
    (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env={**os.environ, **environment}, timeout=120)


@pytest.mark.parametrize(
    ("reason", "no_skips", "status"),
    [
        ("some library is missing", "0", 0),
        ("some library is missing", "1", 1),
        ("needs macOS to predict", "1", 0),
        ("POCKETQA_DATA names no folder of real data", "1", 0),
        ("POCKETQA_DATA names no folder of real data, or so", "1", 1),
    ],
)
def test_only_listed_skips_pass_where_skips_are_forbidden(tmp_path: Path, reason: str, no_skips: str, status: int) -> None:
    done = run_pytest(tmp_path, SKIPPING.format(reason=reason), POCKETQA_NO_SKIPS=no_skips)
    assert done.returncode == status, done.stdout
    assert (f"test_it.py::test_skips: {reason}" in done.stdout) == (status == 1)


def test_a_file_skipped_as_a_whole_counts_too(tmp_path: Path) -> None:
    source = "import pytest\npytest.importorskip('a_library_that_nobody_has')\n\ndef test_never_runs():\n    pass\n"
    (tmp_path / "test_other.py").write_text("def test_passes():\n    pass\n", encoding="utf-8")
    done = run_pytest(tmp_path, source, POCKETQA_NO_SKIPS="1")
    assert done.returncode == 1
    assert "a_library_that_nobody_has" in done.stdout


def test_a_wrong_data_folder_is_an_error_and_no_skip(tmp_path: Path) -> None:
    source = "def test_reads(data_folder):\n    pass\n"
    done = run_pytest(tmp_path, source, POCKETQA_DATA=str(tmp_path / "absent"))
    assert done.returncode == 1
    assert "should name a folder of data sets" in done.stdout
