"""Figures and the HTML page: what is drawn, that it can be read without seeing it, and that the same run files give the same bytes."""

from __future__ import annotations

import base64
import html.parser
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pocketqa import report, runs
from pocketqa.errors import OptionsError
from pocketqa.reporting import drawing, figures, page
from pocketqa.types import RuntimeInfo, Scores
from tests.pocketqa import mobile_runs as made

ROOT = Path(__file__).parents[3]
PNG = b"\x89PNG\r\n\x1a\n"


def evaluation(model: str = "student", engine: str = "onnxruntime") -> runs.RunFile:
    exact = (np.arange(made.COUNT) < 31).astype(float)
    results = runs.evaluation_results(Scores(77.5, 77.5, made.COUNT), exact, exact, made.IDS)
    subject = runs.Subject.of(model, model, made.SHA[model], RuntimeInfo(engine, "1.0", "fp32", 1))
    return made.made("evaluation", f"{model} {engine}", results, (subject,))


EVERYTHING = (
    evaluation(),
    made.verification(),
    made.verification("teacher", "ios18", "int4", 17.0, right=20, layout="ane"),
    made.compression(),
    made.race(),
    made.race("phone", (("student", "coreml fp16", 2.0),), device=made.PHONE, workload="fixed-384: on a phone"),
    made.zoo(),
)


def drawn(*files: runs.RunFile) -> dict[str, figures.Picture]:
    found = figures.pictures({f"{file.kind}-{i}.json": file for i, file in enumerate(files)}, report.TITLES)
    assert all(picture.png.startswith(PNG) and len(picture.alt) > 40 and picture.caption for picture in found)
    return {picture.name: picture for picture in found}


class Outline(html.parser.HTMLParser):
    """Elements that are open, what they say, and whether each is closed."""

    VOID = ("meta", "img")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def outline(text: str) -> Outline:
    parsed = Outline()
    parsed.feed(text)
    assert parsed.open == []
    return parsed


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(*files):
        for file in files:
            runs.write(file, tmp_path / "runs")
        return tmp_path

    return write


def test_everything_is_drawn() -> None:
    found = drawn(*EVERYTHING)
    assert {name: picture.section for name, picture in found.items()} == {
        "quality-squad-dev": "SQuAD v1.1 dev",
        "front-compression-3": "Compression",
        "latency-latency-4": "Latency",
        "latency-latency-5": "Latency",
        "zoo-latency-6": "Zoo",
    }
    quality = found["quality-squad-dev"].alt
    assert "3 forms of teacher, student" in quality and "against latency" in quality  # ONNX Runtime's bytes and time come from the race
    assert "Highest F1: student onnxruntime fp32 with 77.50" in quality and "Smallest: teacher ios18 int4 ane with 17.0 MB and F1 50.00" in quality
    assert (
        "4 combinations of precisions, 10.0 to 45.0 MB; 3 of them on the Pareto front. Selected: 12.0 MB, +0.60" in found["front-compression-3"].alt
    )
    assert "Medians: teacher, onnxruntime fp32 40.00 ms, student, onnxruntime fp32 20.00 ms." in found["latency-latency-4"].alt
    assert "2 models are, here and as published. Here: DistilBERT 6 1.90, its twin 1.90." in found["zoo-latency-6"].alt


def test_where_size_and_latency_of_a_point_come_from() -> None:
    core = made.race("on a phone", (("student", "coreml fp16", 2.0),), device=made.PHONE)
    slow = made.race("fixed", (("student", "onnxruntime fp32", 99.0),), workload="fixed-384: long")
    other = replace(evaluation("teacher"), data=(replace(evaluation().data[0], split="other"),))
    files = {str(i): file for i, file in enumerate((evaluation(), made.verification(), slow, made.race(), core, other))}
    points = {point.form: point for point in figures.quality_points(files, "squad-dev")}
    assert set(points) == {"onnxruntime fp32", "ios16 fp16"}
    assert (points["onnxruntime fp32"].size, points["onnxruntime fp32"].latency) == (90_000_000, 20.0)  # on SQuAD's lengths
    assert (points["ios16 fp16"].size, points["ios16 fp16"].latency) == (45_300_000, 2.0)  # Core ML's time beside the interpreter's scores
    fewer = made.verification(scheme="int8")
    fewer = replace(fewer, results=fewer.results | {"count": made.COUNT - 1})
    sampled = figures.quality_points({"a": evaluation(), "b": fewer}, "squad-dev")
    assert [point.form for point in sampled] == ["onnxruntime fp32", f"ios16 int8, {made.COUNT - 1} questions"]
    elsewhere = evaluation()
    elsewhere = replace(elsewhere, data=(replace(elsewhere.data[0], name="other.json", sha256="1" * 64),))
    assert len(figures.quality_points({"a": evaluation(), "b": elsewhere}, "squad-dev")) == 2  # one form on two files
    untimed = figures.quality_points({"a": evaluation(), "b": made.race("x", (("teacher", "onnxruntime fp32", 1.0),))}, "squad-dev")
    assert [(point.size, point.latency) for point in untimed] == [(None, None)]  # other weights


@pytest.mark.parametrize(
    "files",
    [
        (),
        (evaluation(),),  # no bytes known
        (made.compression(None, (), max_f1_drop=None), made.compression(0, made.POINTS[:1])),  # one scheme alone is no front
        (made.zoo(made.zoo_row("not timed", None), made.REPORTED),),
        (made.made("training", "t", runs.training_results(questions=1, steps=1, tokens=1, seconds=1.0, loss=None), ()),),
    ],
)
def test_nothing_to_draw_is_no_figure(files) -> None:
    assert drawn(*files) == {}


@pytest.mark.parametrize(
    "file",
    [
        made.compression(0, made.POINTS[:2], max_f1_drop=None),
        made.compression(None, made.POINTS),
        made.race("one", (("student", "onnxruntime fp32", 20.0),), quantiles=False),
        made.race("apart", ((made.LONG, "onnxruntime fp32", 900.0), ("student", "pytorch fp32", 0.9))),
        made.race("older", stages={}),
        made.made("load", "load", runs.timing_results("closed loop", {"student": runs.summarise_times([0.01], "s")}), ()),
        made.zoo(made.zoo_row(made.LONG, 0.2), made.zoo_row("quick", 90.0, [made.SAID])),
        made.verification(agreement=None, gate=None, megabytes=0.001),
    ],
    ids=lambda file: f"{file.kind} {file.name}",
)
def test_odd_ones_are_drawn_too(file) -> None:
    (picture,) = drawn(file).values()
    width, height = (int.from_bytes(picture.png[at : at + 4], "big") for at in (16, 20))
    assert width == drawing.WIDTH * drawing.DOTS and 150 < height < 1200


def test_long_labels_make_a_taller_figure() -> None:
    heights = [
        int.from_bytes(next(iter(drawn(made.race("r", ((name, "onnxruntime fp32", 20.0),))).values())).png[20:24], "big") for name in ("a", made.LONG)
    ]
    assert heights[1] > heights[0] + 30


def test_a_summary_in_seconds_is_drawn_in_milliseconds() -> None:
    load = made.made("load", "load", runs.timing_results("closed loop", {"student": runs.summarise_times([0.01, 0.03], "s")}), ())
    assert "student 20.00 ms" in drawn(load)["latency-load-0"].alt


def test_a_busy_machine_is_said_in_the_caption() -> None:
    assert "not to be trusted" in drawn(made.race(busy=True))["latency-latency-0"].caption
    assert "not to be trusted" not in drawn(made.race())["latency-latency-0"].caption


def test_settings_of_whoever_draws_do_not_matter() -> None:
    import matplotlib

    before = drawn(made.race())
    with matplotlib.rc_context({"font.size": 20, "lines.linewidth": 9, "axes.facecolor": "black", "savefig.dpi": 30}):
        assert drawn(made.race()) == before
    assert matplotlib.rcParams["font.size"] == matplotlib.rcParamsDefault["font.size"]  # and ours are not left behind


def test_the_same_run_files_give_the_same_bytes_in_another_process(project) -> None:
    folder = project(*EVERYTHING)
    arguments = ["--no-readme", "--html"]
    assert report.main([*arguments, "here"]) == 0
    again = "from pocketqa.report import main; raise SystemExit(main(['--no-readme', '--html', 'there']))"
    environment = {"PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(folder), "MPLCONFIGDIR": str(folder / "cache")}
    subprocess.run([sys.executable, "-c", again], cwd=folder, check=True, env=environment, capture_output=True, timeout=120)
    first, second = ({file.name: file.read_bytes() for file in (folder / name).iterdir()} for name in ("here", "there"))
    assert first == second
    assert len(first) == 6 and "index.html" in first
    assert not any(str(folder).encode() in content for content in first.values())


def test_the_page_holds_its_figures_and_says_what_they_show(project) -> None:
    folder = project(*EVERYTHING)
    report.main(["--no-readme", "--html", "report"])
    text = (folder / "report" / "index.html").read_text(encoding="utf-8")
    found = outline(text)
    images = found.all("img")
    assert len(images) == 5 == len(list((folder / "report").glob("*.png")))
    for image in images:
        assert image["alt"] and image["width"] == str(int(drawing.WIDTH * drawing.DOTS))
        content = base64.b64decode(str(image["src"]).removeprefix("data:image/png;base64,"))
        assert content in {file.read_bytes() for file in (folder / "report").glob("*.png")}
    assert not re.search(r"<script|https?://|@import|url\(", text)  # nothing from elsewhere
    assert found.all("html") == [{"lang": "en"}]
    assert len(found.all("table")) == len([line for line in report_lines(folder) if line.startswith("| ---")])
    assert all(attributes.get("scope") in ("col", "row") for attributes in found.all("th"))
    assert {"href": "../runs/latency-squad-1-thread-2026-03-01.json"} in found.all("a")
    targets = {str(attributes["href"])[1:] for attributes in found.all("a") if str(attributes["href"]).startswith("#")}
    assert targets == {attributes["id"] for attributes in found.all("section")}


def report_lines(folder: Path) -> list[str]:
    return (folder / "RESULTS.md").read_text(encoding="utf-8").splitlines()


def test_figures_of_an_earlier_report_go_and_other_files_stay(project) -> None:
    folder = project(made.race(), made.race("two threads", threads=2))
    (folder / "report").mkdir()
    for name in ("logo.png", "notes.txt"):
        (folder / "report" / name).write_bytes(b"mine")
    report.main(["--no-readme", "--html", "report"])
    figures = [f"latency-latency-{name}-2026-03-01.png" for name in ("squad-1-thread", "two-threads")]
    assert sorted(file.name for file in (folder / "report").iterdir()) == ["index.html", *figures, "logo.png", "notes.txt"]
    next((folder / "runs").glob("*two-threads*")).unlink()
    report.main(["--no-readme", "--html", "report"])
    assert sorted(file.name for file in (folder / "report").iterdir()) == ["index.html", figures[0], "logo.png", "notes.txt"]


def test_checking_draws_nothing(project) -> None:
    folder = project(made.race())
    with pytest.raises(OptionsError, match="--check changes nothing"):
        report.main(["--no-readme", "--check", "--html", "report"])
    assert not (folder / "report").exists()


def test_what_run_files_say_is_escaped() -> None:
    markdown = (
        "# Results\n\na <b> & `<i>` [x<y](runs/a.json) [click](javascript:alert) [root](/etc/passwd)\n\n## A & B\n\n"
        "### C <i>\n\n| a<b | c |\n| --- | --- |\n| 1\\|2 | `d\\|e` |\n\n- one `open\n- two"
    )
    shown = figures.Picture("f", "A & B", "<caption>", '"alt" <&>', PNG + b"\0" * 8 + b"\0\0\0\5\0\0\0\7")  # a header is all that is read
    text = page.html_page(markdown, [shown, figures.Picture("g", "gone", "c", "a", PNG * 3)])
    found = outline(text)
    assert "<b>" not in text and "<i>" not in text and "<caption>" not in text
    assert [attributes["href"] for attributes in found.all("a")] == ["runs/a.json", "#a-b"]
    assert found.all("img")[0] | {"src": None} == {"src": None, "alt": '"alt" <&>', "width": "5", "height": "7"}
    said = "".join(found.text)
    assert "1|2" in said and "d|e" in said and "one `open" in said and "click" in said
    assert len(found.all("img")) == 2 and text.index('id="a-b"') < text.index("<img")
    assert len(found.all("li")) == 3  # the contents, and two
    assert len(found.all("h3")) == 1 and "C <i>" in said


def test_without_matplotlib_the_extra_is_named(project, monkeypatch, capsys) -> None:
    from pocketqa.__main__ import main as command

    project(made.race())
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.style", None)
    assert command(["report", "--no-readme", "--html", "report"]) == 2
    assert "pip install 'pocketqa[report]'" in capsys.readouterr().err.replace('"', "'")


def test_the_command_without_figures_needs_no_matplotlib(project) -> None:
    folder = project(made.race())
    code = "import sys; sys.modules['matplotlib'] = None; from pocketqa.report import main; raise SystemExit(main(['--no-readme']))"
    assert subprocess.run([sys.executable, "-c", code], cwd=folder, env={"PYTHONPATH": str(ROOT)}, timeout=60, check=False).returncode == 0
