"""Which program `pocketqa benchmark` hands its arguments to."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from pocketqa import benchmark


@pytest.mark.parametrize(
    ("argv", "training"),
    [
        (["--workload", "training"], True),
        (["--workload=training", "model"], True),
        (["model", "--workload", "training", "--seed", "1"], True),
        (["model"], False),
        (["training", "--workload", "squad"], False),
        (["--workload", "squad", "training"], False),
        (["--preset", "training"], False),
    ],
)
def test_the_word_after_workload_chooses(argv: list[str], training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[tuple[str, list[str]]] = []
    for name, status in ((benchmark.TRAINING_VERB, 3), (benchmark.LATENCY_VERB, 4)):

        def verb(words: list[str], name: str = name, status: int = status) -> int:
            called.append((name, words))
            return status

        monkeypatch.setitem(sys.modules, name, SimpleNamespace(main=verb))
    assert benchmark.main(argv) == (3 if training else 4)
    assert called == [(benchmark.TRAINING_VERB if training else benchmark.LATENCY_VERB, argv)]
