"""Which program `pocketqa benchmark` hands its arguments to."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from pocketqa import benchmark

TRAINING, SERVICE, LOAD = "distillation.speed", "loadtest.service_benchmark", "loadtest.load_benchmark"


@pytest.mark.parametrize(
    ("argv", "module"),
    [
        (["--workload", "training"], TRAINING),
        (["--workload=training", "model"], TRAINING),
        (["model", "--workload", "training", "--seed", "1"], TRAINING),
        (["--workload", "service"], SERVICE),
        (["--run-file", "runs", "--workload=service"], SERVICE),
        (["--workload", "load"], LOAD),
        (["model"], benchmark.LATENCY_VERB),
        (["training", "--workload", "squad"], benchmark.LATENCY_VERB),
        (["--workload", "squad", "service"], benchmark.LATENCY_VERB),
        (["--preset", "training"], benchmark.LATENCY_VERB),
    ],
)
def test_the_word_after_workload_chooses(argv: list[str], module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[tuple[str, list[str]]] = []
    for status, name in enumerate((TRAINING, SERVICE, LOAD, benchmark.LATENCY_VERB), 3):

        def verb(words: list[str], name: str = name, status: int = status) -> int:
            called.append((name, words))
            return status

        monkeypatch.setitem(sys.modules, name, SimpleNamespace(main=verb))
    assert benchmark.main(argv) == {TRAINING: 3, SERVICE: 4, LOAD: 5, benchmark.LATENCY_VERB: 6}[module]
    assert called == [(module, argv)]
