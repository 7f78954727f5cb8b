"""The audit of the DistilBERT paper's phone experiment: each claim, the published artefact behind it, the same computed here, and ours.

The figures of the artefacts were read in the repository named, at the commits named.  Sizes are recomputed from lists of parameters; times come from
races (mobile_export.timing.paper runs them).  MB are 10^6 bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mobile_export.checkpoint.geometry import BERT_BASE, DISTILBERT
from mobile_export.timing.latency import why_not_valid
from mobile_export.timing.latency_text import megabytes, threads_text
from mobile_export.timing.sizes import by_precision
from pocketqa import runs
from pocketqa.reporting.tables import interval
from pocketqa.statistics import Interval
from pocketqa.types import JSON

PAPER = "DistilBERT paper, arXiv 1910.01108"
REPOSITORY = "huggingface/swift-coreml-transformers"
FIRST, LATER = "f9ce549 (2019-09-16)", "079477b"
TOKENS, ZEROS = 384, 64  # what the published timing test gives BERT, and DistilBERT
PAPERS_PHONE = ("iPhone 7 Plus", "iPhone9,2", "iPhone9,4")  # as people call it, and as Apple does
HEAD = ("claim", "source", "published artefact", "ours", "conditions", "compares like with like")

VOCABULARY, HIDDEN, FEED_FORWARD, POSITIONS, SEGMENTS = 30_522, 768, 3_072, 512, 2  # bert-base-uncased
GEOMETRY_SLACK = 0.05
STUDENT_LAYERS, TEACHER_LAYERS = 6, 12
PUBLISHED_FILE = 207_185_526  # bytes of Resources/distilbert-512-6.mlmodel
PUBLISHED_TIMED_FILE = 93_800_000  # bytes, to the precision published, of the file that the timing test loads (distilbert_64_12)
FIRST_SECONDS = {"BERT": 1.118, "DistilBERT": 0.319}  # model_generation/distilbert-performance.md of the first commit
LATER_SECONDS = {"BERT": 0.472, "DistilBERT": 0.311}  # CoreMLBertTests of the later one: complete models, 384 tokens, "on device", phone not named
CAVEATS = (
    "That the paper's figures come from this commit is inference from matching bytes, times and date.",
    f"{FIRST_SECONDS['DistilBERT']} s is also close to the later {LATER_SECONDS['DistilBERT']} s of the complete model, which did not exist yet.",
    "BERTSQUADFP16.mlmodel of the same repository, the teacher in float16, has 217,826,610 bytes, which happens to be 207.7 MiB.",
    f"{FIRST_SECONDS['BERT']} s agrees with what the repository later labels Simulator (1.104 s).",
)


@dataclass(frozen=True, slots=True)
class Row:
    """One claim of the paper or of its artefacts beside ours.

    like_for_like: whether the two things that the claim compares, or the thing that it calls a whole model, are what they are taken for: complete
    networks on the same inputs.  (Device and engine differ from the paper's in every row of ours; `conditions` says how.)
    """

    claim: str
    source: str
    published: str
    ours: str
    conditions: str
    like_for_like: bool
    why_not: str = ""

    def cells(self) -> tuple[str, ...]:
        """As in HEAD."""
        flag = "yes" if self.like_for_like else f"NO, IT DOES NOT: {self.why_not}"
        return self.claim, self.source, self.published, self.ours, self.conditions, flag


def published_parameters() -> dict[str, int]:
    """Parameters of the published file, by part: what its script (model_generation/distilbert.py) puts in, attention being "wip" there."""
    return {
        "word embeddings": VOCABULARY * HIDDEN,
        "LayerNorm of the embeddings": 2 * HIDDEN,
        "feed-forward networks": STUDENT_LAYERS * (2 * HIDDEN * FEED_FORWARD + FEED_FORWARD + HIDDEN),
        "LayerNorms of the layers": STUDENT_LAYERS * 2 * 2 * HIDDEN,
    }


def complete_parameters(layers: int, segments: int) -> dict[str, int]:
    """Parameters of a complete question-answering model without pooler, by part; segments: rows of the table of token types (0 in DistilBERT)."""
    return {
        "word embeddings": VOCABULARY * HIDDEN,
        "position embeddings": POSITIONS * HIDDEN,
        "token types": segments * HIDDEN,
        "LayerNorm of the embeddings": 2 * HIDDEN,
        "attention": layers * 4 * (HIDDEN * HIDDEN + HIDDEN),
        "feed-forward networks": layers * (2 * HIDDEN * FEED_FORWARD + FEED_FORWARD + HIDDEN),
        "LayerNorms of the layers": layers * 2 * 2 * HIDDEN,
        "span head": 2 * HIDDEN + 2,
    }


def time_cut(before: float, after: float) -> float:
    """By which share of `before` a time fell: 0.71 for "71 % faster" in the paper's sense."""
    return 1 - after / before


def audit(races: Sequence[JSON], packages: dict[str, dict[str, int]], phone: runs.RunFile | None) -> list[Row]:
    """The rows of the table, from races (with zero, one or more numbers of threads), sizes of real packages and a phone's run file."""
    return [_whole_model(packages), _timed_file(), _smaller_sizes(), *_faster(races), *_phone_rows(phone), _table_3()]


def _whole_model(packages: dict[str, dict[str, int]]) -> Row:
    parts = published_parameters()
    total, complete = 4 * sum(parts.values()), sum(complete_parameters(STUDENT_LAYERS, 0).values())
    by = ", ".join(f"{name} {megabytes(size)}" for name, size in by_precision(complete).items())
    real = "".join(f"; {name}: package {megabytes(size['package'])}, zipped {megabytes(size['zipped'])} MB" for name, size in packages.items())
    return Row(
        "DistilBERT: the whole model weighs 207 MB",
        PAPER,
        f"{REPOSITORY} {FIRST}: distilbert-512-6.mlmodel, {PUBLISHED_FILE:,} bytes = {total:,} bytes of float32 ({', '.join(parts)}) "
        f"and {PUBLISHED_FILE - total:,} bytes of format",
        f"{complete:,} parameters; MB: {by}{real}",
        "ours: complete, with positions, attention and span head, parameters x bits / 8; theirs: recomputed from the parameter list of its script",
        False,
        "the published file has no attention, no positions and no head",
    )


def _timed_file() -> Row:
    parts = published_parameters()
    timed = 4 * (parts["word embeddings"] + parts["LayerNorm of the embeddings"])
    return Row(
        "the file that the published timing test loads",
        f"{REPOSITORY} {FIRST}",
        f"distilbert_64_12, {megabytes(PUBLISHED_TIMED_FILE)} MB",
        f"{timed:,} bytes = {megabytes(timed)} MB for word embeddings and one LayerNorm in float32",
        "recomputed; nothing else fits into the file",
        False,
        "no layer of the model is in it",
    )


def _smaller_sizes() -> Row:
    student, teacher = sum(complete_parameters(STUDENT_LAYERS, 0).values()), sum(complete_parameters(TEACHER_LAYERS, SEGMENTS).values())
    cut = time_cut(teacher, student)
    return Row(
        "DistilBERT has 40 % fewer parameters than BERT-base",
        PAPER,
        "66 million and 110 million",
        f"{student:,} and {teacher:,}: {cut:.1%} fewer",
        "question-answering models without pooler; the paper's 110 million count the pooler",
        True,
    )


def _faster(races: Sequence[JSON]) -> list[Row]:
    first, later = FIRST_SECONDS, LATER_SECONDS
    cut, later_cut = time_cut(*first.values()), time_cut(*later.values())
    strangers = [remark for results in races for remark in _strangers(results)]
    origins = " and ".join(sorted({origin for results in races for origin in results["origin"].values()})) or "nowhere"
    alike = [line for results in races for line in _ratio_lines(results, DISTILBERT.name)]
    unlike = [line for results in races for line in _ratio_lines(results, f"{DISTILBERT.name} on {ZEROS} zeros")]
    equal = f"batch 1, {TOKENS} tokens of real text for both, forward pass only, medians of interleaved pairs, this machine's CPU"
    ours = f"ours: {equal}, parameters from {origins}{''.join(f'; {remark}' for remark in dict.fromkeys(strangers))}"
    return [
        Row(
            "DistilBERT is 71 % faster than BERT (iPhone 7 Plus, without tokenisation)",
            PAPER,
            f"{REPOSITORY} {FIRST}, distilbert-performance.md: {first['BERT']} s and {first['DistilBERT']} s, {cut:.1%} less time",
            "; ".join(alike) or "not measured",
            f"{ours}; theirs: BERT on {TOKENS} real tokens, DistilBERT's test on {ZEROS} zeros",
            False,
            "unlike inputs, and a network that is not complete",
        ),
        Row(
            "the same, its unlike inputs reproduced on purpose",
            f"{REPOSITORY} {FIRST}, CoreMLBertTests",
            f"{cut:.1%} less time",
            "; ".join(unlike) or "not measured",
            f"ours: BERT-base on {TOKENS} real tokens, a complete DistilBERT on {ZEROS} times the id 0 (their network was not complete)",
            False,
            f"{TOKENS} tokens against {ZEROS}",
        ),
        Row(
            "complete models, later",
            f"{REPOSITORY} {LATER}, BertForQATests and DistilbertForQATests",
            f'{later["BERT"]} s and {later["DistilBERT"]} s "on device": {later_cut:.1%} less time, {later["BERT"] / later["DistilBERT"]:.2f} times',
            "; ".join(alike) or "not measured",
            f"{ours}; theirs: {TOKENS} tokens, 10 runs, the first counted, phone not named",
            not strangers,
            "ours are not the paper's networks" if strangers else "",
        ),
    ]


def _strangers(results: JSON) -> list[str]:
    """Which models of a race are not of the paper's size, by their number of parameters (a cased vocabulary is some 2 % smaller)."""
    wanted = {BERT_BASE.name: complete_parameters(TEACHER_LAYERS, SEGMENTS), DISTILBERT.name: complete_parameters(STUDENT_LAYERS, 0)}
    remarks = []
    for label, found in results["bytes"].items():
        name, count = label.split(", ")[0], found.get("parameters")
        expected = sum(wanted.get(name, {}).values())
        if count and expected and abs(count / expected - 1) > GEOMETRY_SLACK:
            remarks.append(f"what was given as {name} has {count:,} parameters, not about {expected:,}")
    return remarks


def _ratio_lines(results: JSON, student: str) -> list[str]:
    """The ratios BERT-base over `student`, one an engine; the forward pass only, as the paper leaves out tokenisation."""
    lines = []
    for name, record in results["forward_ratios"].items():
        first, second = name.split(" / ")
        if first.startswith(f"{BERT_BASE.name}, ") and second.startswith(f"{student}, "):
            ratio = Interval.from_json(record)
            engine = second.removeprefix(f"{student}, ")
            lines.append(f"{engine}, {threads_text(results['threads'])}: {interval(ratio)} times, {time_cut(ratio.value, 1):.1%} less time")
    return lines


def _phone_rows(phone: runs.RunFile | None) -> list[Row]:
    if phone is None:
        return []
    r, device = phone.results, phone.results["device"]
    forward = {label: r["stages"][label]["forward"] for label in r["timings"]}  # the paper leaves out tokenisation
    found = [f"{label}: p50 {t['p50']:.1f}, p90 {t['p90']:.1f} {t['unit']}" for label, t in forward.items()]
    for name, record in r.get("forward_ratios", {}).items():
        ratio = Interval.from_json(record)
        found.append(f"{name}: {interval(ratio)} times, {time_cut(ratio.value, 1):.1%} less time")
    state = f"{device['os']}, compute unit {device['compute_unit']}, thermal state {device['thermal_state']}"
    whose = "the paper's phone" if device["name"] in PAPERS_PHONE else "another phone than the paper's"
    positions = [r.get("tokens", {}).get(label, {}).get("positions") for label in forward]
    unlike = {
        "it is of one model alone": len({subject.sha256 for subject in phone.subjects}) < 2,
        "it does not say that all computed as many positions": None in positions or len(set(positions)) > 1,
        "it is not valid under its rules": bool(why_not_valid(r)),
    }
    why_not = [words for words, holds in unlike.items() if holds]
    return [
        Row(
            "the same on a phone",
            PAPER,
            "see above",
            "; ".join(found),
            f"{device['name']}, {whose}; {state}, {r['mode']}; forward passes",
            not why_not,
            "; ".join(why_not),
        )
    ]


def _table_3() -> Row:
    return Row(
        "DistilBERT is 60 % faster: 410 s against 668 s",
        f"{PAPER}, table 3",
        "one pass of STS-B dev, batch 1, Intel Xeon E5-2690 v3",
        "a measurement of its own: pocketqa benchmark TEACHER STUDENT --workload stsb DIR; RESULTS.md shows it under Latency",
        "a ratio of throughputs (1.63 less one), where the phone's 71 % is a cut of time: the two percentages are of different kinds",
        True,
    )
