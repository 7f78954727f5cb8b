"""The published numbers are those of the committed run files."""

from pathlib import Path

import pytest

from pocketqa import report, runs

ROOT = Path(__file__).parent.parent


def test_pages_and_run_files_agree(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    status = report.main(["--check"])
    assert status == 0, capsys.readouterr().err


def test_run_files_are_small_and_named_once():
    found = runs.read_all(ROOT / "runs")
    for name in found:
        assert (ROOT / "runs" / name).stat().st_size <= runs.MAX_BYTES, name
    for run in found.values():
        if run.kind == "evaluation":
            runs.per_question(run.results, run.name)  # the stored questions give the stored means


def test_an_edited_result_would_be_found(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(ROOT)
    edited = tmp_path / "README.md"
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    edited.write_text(text.replace(report.END, f"| student | 99.99 |\n{report.END}"), encoding="utf-8")
    assert report.main(["--check", "--readme", str(edited)]) == 1
    assert "README.md, line" in capsys.readouterr().err


@pytest.mark.parametrize("page", ["README.md", "RESULTS.md"])
def test_links_to_run_files_lead_somewhere(page):
    for line in (ROOT / page).read_text(encoding="utf-8").splitlines():
        for target in (part.split(")")[0] for part in line.split("](")[1:]):
            if target.startswith("runs/"):
                assert (ROOT / target).is_file(), f"{page}: {target}"
