"""Every recipe that comes with the package runs through its verb, on tiny models: what is left, and that its settings are those of its file."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import BertForMaskedLM

from distillation import distill, finetune, grow, pretrain
from distillation.training.recipes import PREFIX, PRESETS
from pocketqa.folders import ModelFolder
from tests.tiny import tiny_bert, tiny_distilbert, tiny_squad

TEXT: dict[str, float] = {"max_tokens": 32, "batch_tokens": 256, "accumulation": 1, "tokens": 1000, "heldout_tokens": 0}
QUESTIONS: dict[str, float] = {"max_tokens": 64, "doc_stride": 16, "max_question_tokens": 40, "batch_tokens": 640, "epochs": 0.5}
TASK: dict[str, float] = {"max_tokens": 32, "batch_tokens": 512, "batch_rows": 8, "epochs": 1.0}
LEFT = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "manifest.json", "log.jsonl", "README.md"}
# of each recipe: the verb, what it is given beside --out (names of the folder below), and the sizes that stand in place of its own
RECIPES: dict[str, tuple[Callable[[list[str]], int], str, dict[str, float]]] = {
    "pretrain_bert": (pretrain.main, "teacher --corpus text.txt", TEXT),
    "distilbert_paper": (distill.main, "teacher --corpus text.txt", TEXT),
    "tinybert_general": (distill.main, "teacher --corpus text.txt --layers 4 --hidden 16", TEXT),
    **{
        f"mobilebert_{knowledge}": (distill.main, "inverted --corpus text.txt --layers 2 --bottleneck 8", TEXT)
        for knowledge in ("auxiliary", "joint", "progressive")
    },
    **{
        name: (finetune.main, "student --teacher reader --data questions.json", QUESTIONS)
        for name in ("squad_paper", "patient", "tinybert_intermediate", "tinybert_prediction")
    },
    "glue_bert": (finetune.main, "student --task rte --data tasks", TASK),
    "imdb": (finetune.main, "student --task imdb --data tasks", TASK),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of 12 layers with a language head and one that reads, MobileBERT's teacher, a student of 6 layers; text, questions, tasks."""
    folder = tmp_path_factory.mktemp("places")
    tiny_bert(folder / "reader", layers=12)
    tiny_bert(folder / "teacher", layers=12)
    BertForMaskedLM.from_pretrained(folder / "teacher").save_pretrained(folder / "teacher")
    tiny_distilbert(folder / "student", layers=6)
    tiny_squad(folder / "questions.json", paragraphs=4, questions=2)
    (folder / "text.txt").write_text("The red lamp of Anna is in the kitchen. The blue chair of Bruno is in the hall.\n\n" * 60)
    for name, header, line in (("rte", "sentence1\tsentence2\tlabel", "a lamp\ta chair\t{}"), ("imdb", "text\tlabel", "a lamp\t{}")):
        (folder / "tasks" / name).mkdir(parents=True)
        for split in ("train", "dev", "test"):
            (folder / "tasks" / name / f"{split}.tsv").write_text("\n".join([header, *(line.format(number % 2) for number in range(16))]) + "\n")
    shape = ["--inverted-bottleneck", "32", "--hidden", "16", "--heads", "2", "--layers", "2"]
    assert grow.main([str(tiny_bert(folder / "base")), *shape, "--out", str(folder / "grown")]) == 0
    assert pretrain.main([str(folder / "grown"), "--corpus", str(folder / "text.txt"), "--out", str(folder / "inverted"), *flags(TEXT)]) == 0
    return folder


def flags(sizes: dict[str, float]) -> list[str]:
    return [word for name, value in sizes.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def test_every_recipe_stands_below() -> None:
    assert {path.stem for path in PRESETS.glob("*.toml") if not path.stem.startswith(PREFIX)} == set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs_whole(places: Path, tmp_path: Path, name: str) -> None:
    main, given, sizes = RECIPES[name]
    words = [str(places / word) if (places / word).exists() else word for word in given.split()]
    recipe = [] if name == "imdb" else ["--recipe", name]  # the task brings it
    assert main([*words, *recipe, *flags(sizes), "--out", str(tmp_path / "out")]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} >= LEFT
    assert not (tmp_path / "out.run").exists()
    config = ModelFolder(tmp_path / "out").read_manifest().config
    settings = tomllib.loads((PRESETS / f"{name}.toml").read_text(encoding="utf-8"))
    assert (config["recipe"] | settings | sizes, config["steps"] > 0) == (config["recipe"], True)
