"""`pocketqa benchmark`: which program measures.

`--workload training` measures training (distillation/speed.py), `--workload service` the service beside plain servers in a closed loop
(loadtest/service_benchmark.py), `--workload load` teacher, student and the same servers in an open loop (loadtest/load_benchmark.py), everything else
models and bundles (mobile_export/benchmark.py).  No application may import another, so the choice is made here, by name, before any is loaded.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Sequence

WORKLOAD = "--workload"
VERBS = {"training": "distillation.speed", "service": "loadtest.service_benchmark", "load": "loadtest.load_benchmark"}
LATENCY_VERB = "mobile_export.benchmark"


def main(argv: list[str]) -> int:
    """The verb `pocketqa benchmark`; returns the exit status of the program chosen."""
    verb: Callable[[list[str]], int] = importlib.import_module(verb_of(argv)).main
    return verb(argv)


def verb_of(argv: Sequence[str]) -> str:
    """The program for the word after --workload, or joined to it by =."""
    pairs = tuple(itertools.pairwise(argv))
    return next((verb for word, verb in VERBS.items() if f"{WORKLOAD}={word}" in argv or (WORKLOAD, word) in pairs), LATENCY_VERB)
