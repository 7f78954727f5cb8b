"""`pocketqa benchmark`: which program measures.

`--workload training` measures training (distillation/speed.py); everything else measures models and bundles (mobile_export/benchmark.py).  Neither
application may import the other, so the choice is made here, by name, before either is loaded.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Sequence

WORKLOAD, TRAINING = "--workload", "training"
TRAINING_VERB, LATENCY_VERB = "distillation.speed", "mobile_export.benchmark"


def main(argv: list[str]) -> int:
    """The verb `pocketqa benchmark`; returns the exit status of the program chosen."""
    verb: Callable[[list[str]], int] = importlib.import_module(TRAINING_VERB if asks_for_training(argv) else LATENCY_VERB).main
    return verb(argv)


def asks_for_training(argv: Sequence[str]) -> bool:
    """Whether the word after --workload, or joined to it by =, is "training"."""
    pairs = itertools.pairwise(argv)
    return f"{WORKLOAD}={TRAINING}" in argv or (WORKLOAD, TRAINING) in pairs
