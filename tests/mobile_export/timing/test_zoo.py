"""The zoo: published figures against ours, and a run of it on models of two layers."""

from dataclasses import replace

import pytest

from mobile_export.checkpoint.geometry import Geometry
from mobile_export.timing import zoo
from mobile_export.timing.counting import Shape, count, shape_of
from mobile_export.timing.machine_load import Load
from mobile_export.timing.single_stream import Rules
from mobile_export.timing.zoo_models import BASELINE, REPORTED, SOURCES, TOKENS, ZOO, Model, Published, Rounded, Variant
from pocketqa import runs
from pocketqa.errors import OptionsError
from pocketqa.types import JSON

NAMES = {model.name: model for model in ZOO}
SMALL = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 200}


def published(model: Model) -> list[JSON]:
    said: list[JSON] = zoo._row(model, {})["published"]
    return said


def test_the_zoo_is_the_one_that_was_asked_for() -> None:
    assert {
        "BERT-large", "BERT-base", "BERT-small", "BERT-tiny, 4 x 312", "DistilBERT 6", "DistilBERT 4", "Patient-KD 3", "Patient-KD 4", "Patient-KD 6",
        "TinyBERT 4", "TinyBERT 6", "MobileBERT", "MobileBERT-tiny", "MobileBERT without optimisations", "IB-BERT-large",
    } <= set(NAMES)  # fmt: skip
    assert len(NAMES) == len(ZOO)
    assert [model.name for model in REPORTED] == ["ELMo", "GPT"]


@pytest.mark.parametrize("model", ZOO, ids=list(NAMES))
def test_every_count_is_near_a_published_one_or_explained(model: Model) -> None:
    assert model.published
    for said in published(model):
        for quantity in zoo.COUNTED:
            if quantity in said:
                figure = said[quantity]
                assert bool(figure["explanation"]) == (abs(figure["difference_percent"]) > zoo.WORTH_A_WORD), (model.name, said)
                assert "nothing that we found" not in figure["explanation"], (model.name, said)


def test_rounding_is_read_off_the_printed_figure() -> None:
    assert (Rounded("14.5 M").value, Rounded("14.5 M").slack) == (14_500_000, 50_000)
    assert (Rounded("342 ms").value, Rounded("342 ms").slack) == (0.342, 0.0005)
    assert Rounded("1.2 B").slack == pytest.approx(50_000_000)


@pytest.mark.parametrize(
    ("ours", "text", "percent", "explanation"),
    [
        (102, "100 x", 2.0, ""),
        (98, "100 x", -2.0, ""),
        (104, "1e2 x", 4.0, "nothing that we found explains it"),
        (1.04, "1 x", 4.0, "within the rounding of the published figure"),
    ],
)
def test_a_difference_above_two_percent_needs_an_explanation(ours, text, percent, explanation) -> None:
    found = zoo.difference(ours, Rounded(text), shape_of(Geometry("x", "bert")), "parameters", None)
    assert found == {"text": text, "difference_percent": pytest.approx(percent), "explanation": explanation}


def test_a_variant_explains_only_what_it_brings_near() -> None:
    shape = shape_of(Geometry("x", "bert", SMALL))
    more = Variant("with one layer more", lambda s: replace(s, layers=s.layers + 1), "but nobody made it")
    target, ours = (count(s, TOKENS).encoder for s in (replace(shape, layers=13), shape))
    assert zoo.difference(ours, Rounded(f"{target} x"), shape, "parameters", more)["explanation"].startswith("with one layer more, it would be 0.0")
    assert zoo.difference(ours, Rounded(f"{target} x"), shape, "parameters", more)["explanation"].endswith("M, but nobody made it")
    assert zoo.difference(ours, Rounded(f"{2 * target} x"), shape, "parameters", more)["explanation"] == "nothing that we found explains it"


def test_the_variants_of_mobilebert() -> None:
    """Queries of the input: two maps 512 x 128 in place of the shared one and of two 128 x 128, and one norm less, in each of 24 layers."""
    released = shape_of(NAMES["MobileBERT"].geometry)
    variant = NAMES["MobileBERT"].variant
    assert variant is not None
    gained = 24 * ((2 * (512 * 128 + 128)) - (512 * 128 + 128) - 2 * (128 * 128 + 128) - 2 * 128)
    assert count(variant.change(released), TOKENS).encoder - count(released, TOKENS).encoder == gained
    unshared = replace(NAMES["MobileBERT"].geometry, config={**NAMES["MobileBERT"].geometry.config, "key_query_shared_bottleneck": False})
    assert sorted(shape_of(unshared).linears) == sorted(variant.change(released).linears)


@pytest.mark.parametrize(
    ("name", "source", "times"),
    [
        ("DistilBERT 6", "distilbert", 1.63),  # 668 s / 410 s
        ("DistilBERT 6", "tinybert", 2.0),
        ("MobileBERT", "mobilebert", 5.52),  # 342 ms / 62 ms
        ("MobileBERT-tiny", "mobilebert", 8.55),
        ("MobileBERT without optimisations", "mobilebert", 1.78),
        ("TinyBERT 4", "tinybert", 9.4),
        ("BERT-large", "mobilebert", None),
    ],
)
def test_published_speed_ups(name, source, times) -> None:
    assert [zoo.speed_up(said) for said in NAMES[name].published if said.source == source] == [times]


def test_elmo_was_slower_than_bert() -> None:
    assert zoo.speed_up(REPORTED[0].published[0]) == 0.75  # 668 s / 895 s


def test_figures_that_could_not_be_read_again_say_so() -> None:
    (said,) = published(NAMES["Patient-KD 3"])
    assert said["confirmed"] is False
    assert said["source"] == SOURCES["pkd"].citation
    assert said["timed_on"] == SOURCES["pkd"].timed_on


def small(name: str, layers: int, *published: Published) -> Model:
    return Model(Geometry(name, "bert", {**SMALL, "num_hidden_layers": layers}), published)


def test_a_run_counts_all_and_times_each_network_once(monkeypatch, tmp_path) -> None:
    animals = (
        small(BASELINE, 6, Published("tinybert", Rounded("1 M"))),
        small("one layer", 1, Published("tinybert", speed_up=Rounded("6.0 x"))),
        small("its twin", 1),
        small("not timed", 2),
    )
    monkeypatch.setattr(zoo, "ZOO", animals)
    said: list[str] = []
    visit = zoo.run(Rules("rapid", 8, 600.0), names=["one layer", "its twin"], say=said.append)
    run = runs.new_run("latency", "zoo", visit.subjects, visit.data, ["pocketqa", "benchmark", "--preset", "zoo"], visit.results)
    results = runs.read(runs.write(run, tmp_path)).results
    rows = {row["name"]: row for row in results["zoo"]}
    assert list(rows) == [BASELINE, "one layer", "its twin", "not timed", "ELMo", "GPT"]
    one, twin = rows["one layer"], rows["its twin"]
    assert one["latency"]["count"] == one["baseline_latency"]["count"] == 8  # and not the least duration
    of_medians = one["baseline_latency"]["p50"] / one["latency"]["p50"]
    assert one["speed_up"]["value"] == pytest.approx(of_medians, rel=1e-3)
    assert one["speed_up"]["low"] <= one["speed_up"]["value"] <= one["speed_up"]["high"]
    assert (one["same_network_as"], twin["same_network_as"]) == ("", "one layer")
    assert twin["latency"] == one["latency"]
    assert "latency" not in rows["not timed"] and rows["not timed"]["layers"] == 2
    assert one["published"][0]["speed_up"] == {"value": 6.0, "derived": False}
    assert rows[BASELINE]["published"][0]["parameters"]["text"] == "1 M"
    assert rows["ELMo"]["reported"][0]["parameters"]["text"] == "180 M"
    assert rows["one layer"]["bytes"]["fp16"] == 2 * rows["one layer"]["network_parameters"]
    assert list(results["timings"]) == ["one layer"] and list(results["ratios"]) == [f"{BASELINE} / one layer"]
    assert results["mode"] == "rapid" and results["rules"]["valid"] is False
    assert "onnxruntime" in results["engines"]["one layer"]
    assert {subject.name for subject in visit.subjects} == {BASELINE, "one layer"}
    assert sum("making" in line for line in said) == 2
    printed = "\n".join(zoo.lines(results))
    assert "| its twin (the network of one layer) |" in printed and "| 180 M |" in printed
    assert ("BUSY MACHINE" in printed) == results["busy"]


def test_the_load_of_a_zoo_is_the_worst_of_its_races() -> None:
    worst = zoo._worst([Load(average=0.1, others=0.5), Load(average=0.2), Load(steal=0.0)])
    assert worst == Load(average=0.2, others=0.5, steal=0.0)
    assert len(worst.reasons()) == 1  # others
    assert zoo._worst([]).reasons() == []


def test_an_unknown_name_is_refused_before_any_work() -> None:
    with pytest.raises(OptionsError, match="found 'RoBERTa'"):
        zoo.run(Rules("rapid", 1, 0.0), names=["RoBERTa"])


def test_shapes_are_values() -> None:
    assert shape_of(NAMES["TinyBERT 4"].geometry) == shape_of(NAMES["BERT-tiny, 4 x 312"].geometry)
    assert isinstance(shape_of(NAMES["TinyBERT 4"].geometry), Shape)
