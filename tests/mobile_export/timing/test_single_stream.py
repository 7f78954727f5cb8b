"""The rules of the race on numbers worked by hand, and races between tiny models in processes of their own."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest

from mobile_export.benchmark import heats_of
from mobile_export.timing import machine_load, single_stream
from mobile_export.timing.contestants import Contestant, model_contestant, parse_engine, told_apart
from mobile_export.timing.latency import race_results, verdict
from mobile_export.timing.machine_load import Load, Snapshot, drift, pick_cores, spread
from mobile_export.timing.processes import Process, drop_from_cache
from mobile_export.timing.single_stream import MODES, Race, Rules, broken_rules, foreseen, is_warm, query_order, race, seconds_left
from mobile_export.timing.sizes import sizes_of
from mobile_export.timing.workloads import SAMPLES, Query, Workload, fixed_workload, squad_workload, stsb_workload
from pocketqa import squad
from pocketqa.errors import DataError, EngineError, IncompleteFolder, OptionsError, VocabularyMismatch
from pocketqa.features import Tokenizer
from pocketqa.folders import ModelFolder, sha256_file, write_manifest
from pocketqa.statistics import Interval
from pocketqa.types import Request, WindowOptions
from tests.packaged import copy_of, model_folder

LITTLE = Rules("rapid", 3, 0.0)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(model_folder("bert") / "tokenizer.json")


def pair(engine: str = "onnxruntime") -> list[Contestant]:
    return [model_contestant(model_folder(kind), engine, 1) for kind in ("bert", "distilbert")]


def workload(count: int = 5, **changes: object) -> Workload:
    queries = tuple(Query(f"who is {i} ?", "the man of the house") for i in range(count))
    return replace(Workload("w", "words", queries, WindowOptions(32, 10, 10)), **changes)  # type: ignore[arg-type]


# --- rules ---------------------------------------------------------------------------------------------------------------------------------------


def test_the_modes_are_those_of_mlperf_mobile() -> None:
    assert {name: (rules.queries, rules.seconds) for name, rules in MODES.items()} == {"full": (1024, 60), "quick": (128, 10), "rapid": (64, 6)}


@pytest.mark.parametrize(
    ("seconds", "warm"),
    [
        ([1.0, 1.0, 1.0, 1.0], False),  # fewer than two windows of three
        ([9.0, 5.0, 2.0, 1.0, 1.0, 1.0], False),  # medians 5 and 1
        ([9.0, 5.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0], True),
        ([1.0, 1.0, 1.0, 1.05, 1.05, 1.05], True),  # exactly the tolerance
        ([1.0, 1.0, 1.0, 1.06, 1.06, 1.06], False),
        ([1.0, 1.0, 1.0, 0.9, 0.9, 0.9], False),  # still becoming faster
        ([1.0, 1.0, 1.0, 1.0, 1.0, 99.0], True),  # a single slow query moves no median
    ],
)
def test_warm_up_ends_when_two_windows_agree(seconds: list[float], warm: bool) -> None:
    assert is_warm(seconds, window=3, tolerance=0.05 + 1e-12) is warm


def test_a_result_needs_queries_and_seconds() -> None:
    rules = Rules("full", 4, 2.0)
    assert broken_rules(rules, workload(), np.array([0.5, 0.5, 0.5, 0.5]), "a") == []
    assert broken_rules(rules, workload(), np.array([1.0, 1.0, 1.0]), "a") == ["a: 3 queries, at least 4 are needed"]
    assert broken_rules(rules, workload(), np.array([0.4] * 4), "a") == ["a: 1.6 s, at least 2 s are needed"]
    assert len(broken_rules(rules, workload(), np.array([0.1]), "a")) == 2


def test_a_whole_pass_needs_every_query_and_no_more() -> None:
    whole = workload(5, whole=True)
    assert broken_rules(MODES["full"], whole, np.ones(5), "a") == []
    assert broken_rules(MODES["full"], whole, np.ones(4), "a") == ["a: a whole pass is 5 queries, found 4"]
    assert broken_rules(MODES["full"], replace(whole, expected=1500), np.ones(5), "a") == ["a: a whole pass is 1,500 queries, found 5"]


def test_queries_are_drawn_with_replacement_in_a_seeded_order() -> None:
    drawn = list(islice(query_order(workload(5), 0), 3000))
    assert drawn == list(islice(query_order(workload(5), 0), 3000)) != list(islice(query_order(workload(5), 1), 3000))
    counts = np.bincount(drawn, minlength=5)
    assert (abs(counts - 600) < 5 * np.sqrt(3000 * 0.2 * 0.8)).all()
    repeats = sum(a == b for a, b in pairwise(drawn))
    assert 500 < repeats < 700  # one in five; shuffled lists, one after another, would repeat one in 25


def test_a_whole_pass_asks_each_query_once_in_another_order() -> None:
    order = list(query_order(workload(50, whole=True), 3))
    assert sorted(order) == list(range(50)) != order


def test_time_left() -> None:
    rules = Rules("full", 100, 10.0, 60.0)
    # 20 rounds took 4 s of wall time; the fastest contestant has 1 s of its 10: 180 more rounds of 0.2 s
    assert seconds_left(rules, 20, (1.0, 2.0), 4.0) == pytest.approx(36.0)
    # queries are what is missing: 80 rounds
    assert seconds_left(rules, 20, (10.0, 11.0), 24.0) == pytest.approx(96.0)
    # the slowest reaches its 60 s after 20 more rounds, before the fastest has its queries
    assert seconds_left(rules, 20, (10.0, 30.0), 40.0) == pytest.approx(40.0)
    assert seconds_left(rules, 10, (1.0,), 5.0, whole=40) == pytest.approx(15.0)
    assert seconds_left(rules, 0, (0.0,), 0.0) == float("inf")


def test_a_result_that_cannot_become_valid_is_foreseen() -> None:
    rules = Rules("full", 1000, 60.0, 600.0)
    assert foreseen(rules, 20, (6.0, 12.0)) is None  # 0.6 s a query: 1,000 of them, and 300 s of the faster
    assert "980 queries fit into the 600 s" in str(foreseen(rules, 20, (6.0, 12.24)))
    assert "2,000 queries fit" in str(foreseen(rules, 20, (0.5, 6.0)))  # but only 50 s of the faster


# --- ratios --------------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "says"),
    [
        (Interval(1.5, 1.2, 1.8), "student is faster"),
        (Interval(0.8, 0.7, 0.9), "teacher is faster"),
        (Interval(1.1, 0.9, 1.3), "no verdict: the interval of the ratio includes 1"),
        (Interval(1.1, 1.0, 1.3), "no verdict: the interval of the ratio includes 1"),
    ],
)
def test_no_verdict_where_the_interval_includes_one(ratio: Interval, says: str) -> None:
    assert verdict(ratio, "teacher", "student") == says


# --- the machine ---------------------------------------------------------------------------------------------------------------------------------


def test_a_quiet_machine_gives_no_reasons() -> None:
    assert Load(average=0.2, others=0.05, steal=0.005, waited=0.01, throttled=0.0, drift=0.02, spread=0.1).reasons() == []
    assert Load().reasons() == []  # what is not measured is no reason


@pytest.mark.parametrize(
    ("load", "says"),
    [
        (Load(average=0.6), "load average before the run was 0.60 a core"),
        (Load(others=0.25), "other processes used 25% of the machine"),
        (Load(steal=0.03), "hypervisor took 3.0% of the time"),
        (Load(waited=0.5), "waited for a core for 50.0% of their computing time"),
        (Load(throttled=0.2), "quota stopped this group for 0.20 s"),
        (Load(drift=0.2), "median moved by 20%"),
        (Load(spread=0.4), "90th percentile is 40% above the median"),
    ],
)
def test_a_busy_machine_is_flagged_with_the_reason(load: Load, says: str) -> None:
    assert says in load.reasons()[0]
    assert load.to_json()["busy"] is True


def test_the_share_of_others_is_what_is_neither_ours_nor_idle() -> None:
    before = Snapshot(wall=10.0, own=3.0, busy=100.0, steal=1.0, throttled=0.5)
    after = Snapshot(wall=20.0, own=9.0, busy=111.0, steal=1.4, throttled=0.75)
    load = before.until(after, cores=4, average=0.1, waited=None, drift=None, spread=None)
    assert load.others == pytest.approx((11 - 6) / 40)  # 11 s of everybody, 6 of them ours, of 4 cores x 10 s
    assert load.steal == pytest.approx(0.01)
    assert load.throttled == pytest.approx(0.25)


def test_what_the_system_does_not_say_stays_unknown() -> None:
    before, after = Snapshot(0.0, 0.0, None, None, None), Snapshot(1.0, 1.0, None, None, None)
    assert before.until(after, cores=2, average=None, waited=None, drift=None, spread=None) == Load()


def test_a_snapshot_sees_our_own_work() -> None:
    before = Snapshot.take()
    sum(i * i for i in range(2_000_000))
    after = Snapshot.take()
    assert after.own - before.own > 0.01
    assert after.wall > before.wall


def test_drift_and_spread() -> None:
    assert drift([1.0] * 10 + [1.2] * 10) == pytest.approx(0.2)
    assert drift([1.0] * 15) is None
    assert spread([1.0] * 15 + [2.0] * 5) == pytest.approx(1.0)
    assert spread([1.0] * 3) is None


def test_cores_of_different_physical_cores_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for core, siblings in enumerate(("0-1", "0-1", "2-3", "2-3")):
        topology = tmp_path / f"cpu{core}" / "topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(siblings)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    assert pick_cores(1, tmp_path) == (0,)
    assert pick_cores(2, tmp_path) == (0, 2)
    assert pick_cores(3, tmp_path) == (0, 1, 2)
    assert pick_cores(2, tmp_path / "nothing") == (0, 1)


# --- workloads -----------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [32, 128, 384])
def test_fixed_windows_have_exactly_the_length(length: int, tokenizer: Tokenizer) -> None:
    made = fixed_workload(length, tokenizer)
    examples = {example.question: example.context for example in squad.load(SAMPLES)}
    encoded = tokenizer.encode([Request(query.question, (query.context,)) for query in made.queries], made.windows)
    assert {len(window) for window in encoded.windows} == {length}
    assert len(encoded.windows) == len(made.queries) > 10
    for query in made.queries:  # real text: it begins with the passage of its question
        begin = min(len(query.context), len(examples[query.question]))
        assert query.context[:begin] == examples[query.question][:begin]


def test_fixed_windows_need_text_and_a_possible_length(tokenizer: Tokenizer) -> None:
    with pytest.raises(OptionsError, match="between 16 and 512"):
        fixed_workload(513, tokenizer)


def test_questions_keep_their_lengths(tokenizer: Tokenizer) -> None:
    made = squad_workload()
    assert [(q.question, q.context) for q in made.queries] == [(e.question, e.context) for e in squad.load(SAMPLES)]
    assert made.windows == WindowOptions(384, 128, 252)
    assert (made.data[0].name, made.data[0].split, made.data[0].count) == ("samples.json", "samples", len(made.queries))
    assert squad_workload(limit=7, seed=1).queries != squad_workload(limit=7, seed=2).queries


def test_questions_that_fit_in_no_window_are_left_out_and_counted(tokenizer: Tokenizer) -> None:
    lengths = [tokenizer.count_tokens(example.question) for example in squad.load(SAMPLES)]
    made = squad_workload(max_tokens=32, tokenizer=tokenizer)  # 32 - 10 - 4 = 18 tokens for a question
    assert 0 < len(made.queries) == sum(length <= 18 for length in lengths) < len(lengths)
    assert made.data[0].count == len(made.queries)
    assert f"{len(lengths) - len(made.queries)} longer questions left out" in made.description
    for query in made.queries:
        assert tokenizer.encode([Request(query.question, (query.context,))], made.windows).windows
    with pytest.raises(DataError, match="at most 7 tokens"):
        squad_workload(max_tokens=16, tokenizer=tokenizer)


def test_stsb_is_read_as_glue_writes_it(tmp_path: Path) -> None:
    (tmp_path / "dev.tsv").write_text('index\tsentence1\tsentence2\tscore\n0\tA "plane\tAn air plane\t5.0\n1\tTwo\tThree\t1.0\n', encoding="utf-8")
    made = stsb_workload(tmp_path)
    assert [(q.question, q.context) for q in made.queries] == [('A "plane', "An air plane"), ("Two", "Three")]  # no quoting: a sign stays a sign
    assert (made.whole, made.expected, made.data[0].count) == (True, 1500, 2)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("sentence1\tlabel\n", "sentence2 missing"),
        ("sentence1\tsentence2\n", "at least one pair"),
        ("sentence1\tsentence2\nonly one\n", "line 2: expected 2 columns"),
        ("sentence1\tsentence2\na\t \n", "line 2"),
        (None, "cannot be read"),
    ],
)
def test_what_is_wrong_with_an_stsb_file(text: str | None, says: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "dev.tsv").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=says):
        stsb_workload(tmp_path)


# --- races ---------------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def done(tokenizer: Tokenizer) -> Race:
    zeros = replace(pair()[1], name="student on zeros", zeros=20)
    return race([*pair(), zeros], fixed_workload(48, tokenizer), LITTLE, seed=1)


def test_samples_are_pairs_of_the_same_queries(done: Race) -> None:
    first, second, _ = done.entries
    assert [len(entry.samples) for entry in done.entries] == [3, 3, 3]
    assert {(sample.tokens, sample.positions, sample.windows) for entry in (first, second) for sample in entry.samples} == {(48, 48, 1)}
    assert all(min(sample.tokenise, sample.forward, sample.decode) > 0 for entry in (first, second) for sample in entry.samples)
    assert done.problems() == []


def test_zeros_are_asked_in_place_of_text(done: Race) -> None:
    for sample in done.entries[2].samples:
        assert (sample.tokens, sample.positions, sample.tokenise, sample.decode) == (20, 20, 0.0, 0.0)
        assert sample.forward > 0


def test_loads_memory_and_warm_up_are_measured(done: Race) -> None:
    for entry in done.entries:
        assert entry.cold is not None
        assert entry.cold.load > 0
        assert entry.warm.load > 0
        assert entry.first_cold is not None
        assert len(entry.warm_up) >= 16
        assert entry.warm.info.engine == "onnxruntime"
        assert entry.warm.info.threads == 1
        if entry.closed.peak is not None and entry.warm.memory_before is not None:
            assert entry.closed.peak > entry.warm.memory_before > 10
        assert entry.closed.cpu > 0


def test_times_are_taken_inside_the_process_and_the_rest_of_the_machine_is_watched(done: Race) -> None:
    assert len(done.cores) in (0, 1)
    assert done.load.others is None or 0 <= done.load.others <= 1
    assert sum(entry.seconds().sum() for entry in done.entries) < 30


def test_a_process_computes_on_the_cores_it_was_given() -> None:
    cores = pick_cores(1)
    with Process(pair()[0], cores) as process:
        process.open()
        assert process._process is not None
        if cores:
            assert os.sched_getaffinity(process._process.pid) == set(cores)
        assert process.settle()
    assert process._process.returncode == 0


def test_control_c_ends_the_race_and_keeps_what_was_measured() -> None:
    def press(line: str) -> None:
        if line.startswith("warming up tiny-distilbert"):
            os.kill(os.getpid(), signal.SIGINT)

    done = race(pair(), squad_workload(limit=4), MODES["full"], cold=False, say=press)
    assert done.interrupted
    assert [len(entry.samples) for entry in done.entries] == [1, 1]
    assert "the run was interrupted" in done.problems()
    assert len(done.problems()) == 5  # and neither contestant has its queries and seconds


def test_a_race_stops_where_a_contestant_has_had_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(single_stream, "PROGRESS_SECONDS", 0.0)
    said: list[str] = []
    done = race(pair()[:1], squad_workload(limit=4), Rules("full", 10_000, 60.0, max_seconds=0.05), cold=False, say=said.append)
    assert sum("too few for a valid result" in line for line in said) == 1
    assert 0.05 <= done.entries[0].seconds().sum() < 5
    assert len(done.problems()) == 2


def test_who_races_on_what(capsys: pytest.CaptureFixture[str]) -> None:
    plain, _ = pair()
    fixed = replace(plain, name="fixed", lengths=(32, 128))
    core_ml = replace(plain, name="ml", engine="coreml", lengths=(32,), unit="ne")
    assert core_ml.label == "ml, coreml-ne fp32"
    any_length, short, equal = workload(), workload(windows=WindowOptions(64, 10, 10), fixed_length=64), workload(fixed_length=32)
    heats = heats_of([plain, fixed, core_ml], [any_length, short, equal], (1, 2))
    assert [([c.name for c in racing], [c.threads for c in racing], work is any_length) for racing, work in heats] == [
        (["tiny-bert", "fixed"], [1, 1], True),
        (["tiny-bert", "fixed"], [2, 2], True),
        (["ml"], [1], True),  # on as many threads as Core ML likes
        (["tiny-bert"], [1], False),
        (["tiny-bert"], [2], False),
        (["tiny-bert", "fixed"], [1, 1], False),
        (["tiny-bert", "fixed"], [2, 2], False),
        (["ml"], [1], False),
    ]
    said = capsys.readouterr().err
    assert "fixed, onnxruntime fp32: takes windows of 32 or 128 tokens, so it is left out of w" in said and said.count("left out") == 2


def test_contestants_of_one_name_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    paths = [tmp_path / "new" / "model", tmp_path / "old" / "model", tmp_path / "other"]
    made = [replace(pair()[0], path=path) for path in paths]
    assert [c.name for c in told_apart(made)] == ["tiny-bert (new/model)", "tiny-bert (old/model)", "tiny-bert (other)"]
    assert told_apart(pair()) == pair()


def test_no_verdict_where_positions_differ() -> None:
    first, _ = pair()
    done = race([first, replace(first, name="zeros", zeros=8)], workload(fixed_length=32), LITTLE, cold=False)
    found = race_results(done, {})
    assert list(found["verdicts"].values()) == ["no verdict: they compute other numbers of positions"]
    crowded = replace(done, load=Load(others=0.4), workload=workload())
    assert list(race_results(crowded, {})["verdicts"].values()) == ["no verdict: busy machine"]
    assert found["threads"] == 1 and found["device"]["compute_unit"] == "cpu"


def test_contestants_that_cannot_be_compared_are_refused() -> None:
    first, second = pair()
    problems = [
        ([], "at least one contestant"),
        ([first, first], "given twice"),
        ([first, replace(second, threads=2)], "same number of threads"),
        ([first, replace(second, lengths=(16, 24))], "at most 24 tokens, not 32"),
    ]
    for contestants, says in problems:
        with pytest.raises(OptionsError, match=says):
            race(contestants, workload(), LITTLE)


def test_an_int8_form_races_and_has_its_own_size(tmp_path: Path) -> None:
    import onnx

    folder = ModelFolder(copy_of("distilbert", tmp_path / "model"))
    with pytest.raises(IncompleteFolder, match="form onnx-int8"):
        model_contestant(folder.path, "onnxruntime:int8", 1)
    form = folder.path / "forms" / "onnx-int8"
    form.mkdir(parents=True)
    onnx.save(onnx.load(str(folder.graph)), str(form / "model.onnx"))  # its weights within; how they were quantised is of no concern here
    write_manifest(form, kind="model", name="int8", parent=sha256_file(folder.weights))
    contestant = model_contestant(folder.path, "onnxruntime:int8", 1)
    sizes = sizes_of(contestant)
    assert sizes["package"] == sizes["weights"] == (form / "model.onnx").stat().st_size
    done = race([contestant], workload(), LITTLE, cold=False)
    assert done.entries[0].warm.info.precision == "int8"
    assert len(done.entries[0].samples) == 3


def test_models_of_different_vocabularies_do_not_race() -> None:
    cased = model_contestant(model_folder("distilbert", cased=True), "onnxruntime", 1)
    with pytest.raises(VocabularyMismatch, match="split text differently"):
        race([pair()[0], cased], workload(), LITTLE, cold=False)


def test_a_failure_in_the_process_is_told_in_its_words(tmp_path: Path) -> None:
    lost = replace(pair()[0], path=tmp_path)
    with pytest.raises(EngineError, match=r"tiny-bert, onnxruntime fp32: Expected .*tokenizer"):
        race([lost], workload(), LITTLE)


def test_a_process_that_dies_is_reported() -> None:
    with Process(pair()[0], ()) as process:
        process.open()
        assert process._process is not None
        process._process.kill()
        process._process.wait()
        with pytest.raises(EngineError, match="ended with status -9"):
            process.give(workload())


def test_engines_by_name_and_precision() -> None:
    assert parse_engine("openvino:bf16") == ("openvino", "bf16")
    assert parse_engine("pytorch") == ("pytorch", "fp32")
    with pytest.raises(OptionsError, match="out of onnxruntime, openvino, pytorch, executorch, coreml"):
        parse_engine("tensorrt")


def test_files_leave_the_page_cache_only_as_far_as_the_system_can_be_asked(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(1000))
    assert drop_from_cache([tmp_path / "file"]) is hasattr(os, "posix_fadvise")
    assert (tmp_path / "file").read_bytes() == bytes(1000)


def test_all_cores_of_the_machine_are_counted() -> None:
    assert machine_load.machine_cores() >= len(pick_cores(10_000)) >= 0
