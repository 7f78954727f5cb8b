"""Faults are put into programs one at a time (`mutations.py`); are they noticed, and is the right operation named?

Three judges.  The trace of a bundle (`pocketqa verify` asks it), all that it holds.  The same without what is recorded of constants and wiring: what
each operation computes, alone.  And PyTorch, without any record: the network's own tensors.  A fault counts only where the operation in which it lies
is named first.  The two that go by computation cannot see a fault that leaves every bit of every result on the window: those are not counted
against them, but listed.  So are the survivors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mobile_export.checkpoint.checkpoints import open_checkpoint
from mobile_export.interpreter import trace
from mobile_export.interpreter.mlprogram import Program, open_program
from mobile_export.interpreter.trace import compare_trace, record_trace, trace_window
from mobile_export.networks.network import export_network
from pocketqa.errors import EngineError
from pocketqa.types import JSON
from tests.mobile_export.bundles import bundle_of, package_of
from tests.mobile_export.confirmation import confirm
from tests.mobile_export.mutations import Mutation, mutations
from tests.packaged import model_folder

COMMUTATIVE = {"add", "mul", "equal", "not_equal", "logical_and", "logical_or", "maximum", "minimum"}
ENOUGH = 0.95


@dataclasses.dataclass(frozen=True)
class Verdict:
    """On one fault: which judges name its operation, and whether any bit of any result differs."""

    mutation: Mutation
    trace: bool
    computed: bool
    pytorch: bool
    visible: bool


class Court:
    """A sound program with its trace and its network; judges faults."""

    def __init__(self, kind: str, layout: str, length: int) -> None:
        options = ("--target", "ios16", "--length", str(length), *(("--layout", layout) if layout != "standard" else ()))
        self.program = open_program(package_of(bundle_of(kind, *options)))
        checkpoint = open_checkpoint(str(model_folder(kind)))
        self.network = export_network(checkpoint.model, checkpoint.vocabulary.markers, (length,), layout=layout)
        self.ids = trace_window(self.program)
        self.trace: JSON = record_trace(self.program, self.ids)
        self.confirmation = confirm(self.program, self.network, self.ids)
        self.bits = self._bits(self.program)

    def judge(self, mutation: Mutation) -> Verdict:
        findings = compare_trace(mutation.program, self.trace)
        computed = [f for f in findings if f.what in ("value", "program")]
        pytorch = self._pytorch(mutation.program)
        return Verdict(
            mutation,
            trace=bool(findings) and findings[0].operation in mutation.operations,
            computed=bool(computed) and any(name in computed[0].found or name == computed[0].operation for name in mutation.operations),
            pytorch=pytorch is not None and any(name in pytorch for name in mutation.operations),
            visible=self._bits(mutation.program) != self.bits,
        )

    def _pytorch(self, program: Program) -> str | None:
        """Who is named first: by an error, by an operation without a counterpart, or as the taker of a constant that is not the network's."""
        try:
            found = confirm(program, self.network, self.ids)
        except EngineError as error:
            return str(error)
        unconfirmed = [name for name, _ in found.unconfirmed if (name, _) not in self.confirmation.unconfirmed]
        foreign = [name for name in found.foreign if name not in self.confirmation.foreign]
        takers = [op.name for op in program.operations if any(name in group for group in op.inputs.values() for name in foreign)]
        return ", ".join(takers) or next(iter(unconfirmed), None)

    def _bits(self, program: Program) -> Any:
        """All results of all operations, each alone, or the error."""
        try:
            return [(name, None if sums is None else sums.tobytes()) for name, sums, _ in trace._digests(program, self.ids)]
        except EngineError as error:
            return str(error)


def caught(verdicts: list[Verdict], judge: Callable[[Verdict], bool]) -> float:
    return sum(map(judge, verdicts)) / len(verdicts)


def report(name: str, verdicts: list[Verdict]) -> Iterator[str]:
    visible = [verdict for verdict in verdicts if verdict.visible]
    kinds = {kind: sum(v.mutation.kind == kind for v in verdicts) for kind in ("row", "operands", "constant")}
    yield f"{name}: {len(verdicts)} faults {kinds}, of which {len(visible)} change a result on the window"
    yield f"  named by the trace: {caught(verdicts, lambda v: v.trace):.1%} of all"
    yield f"  named by what is computed alone: {caught(visible, lambda v: v.computed):.1%} of those that change a result"
    yield f"  named by PyTorch, without a record: {caught(visible, lambda v: v.pytorch):.1%} of those that change a result"
    for verdict in verdicts:
        blind = [judge for judge in ("trace", "computed", "pytorch") if not getattr(verdict, judge)]
        if blind:
            yield f"    not named by {', '.join(blind)}: {verdict.mutation.what} ({reason(verdict)})"


def reason(verdict: Verdict) -> str:
    operation = verdict.mutation.what.split()[0]
    if verdict.visible:
        return "changes a result"
    if verdict.mutation.kind == "operands" and operation in COMMUTATIVE:
        return f"{operation} does not depend on the order"
    if verdict.mutation.kind == "row":
        return "no token of the window looks this row up"
    return "every result on the window keeps its bits"


def assert_caught(kind: str, layout: str, length: int, only: Callable[[Mutation], bool] = lambda mutation: True) -> None:
    court = Court(kind, layout, length)
    assert compare_trace(court.program, court.trace) == []
    verdicts = [court.judge(mutation) for mutation in mutations(court.program) if only(mutation)]
    print(*report(f"{kind}, {layout}", verdicts), sep="\n")
    visible = [verdict for verdict in verdicts if verdict.visible]
    assert caught(verdicts, lambda v: v.trace) >= ENOUGH
    assert caught(visible, lambda v: v.computed) >= ENOUGH
    assert caught(visible, lambda v: v.pytorch) >= ENOUGH


def test_faults_in_a_bert_are_named() -> None:
    assert_caught("bert", "standard", 32)


@pytest.mark.full
@pytest.mark.parametrize(("kind", "layout"), [("distilbert", "standard"), ("bert", "ane"), ("distilbert", "ane")])
def test_faults_in_other_programs_are_named(kind: str, layout: str) -> None:
    assert_caught(kind, layout, 32)
