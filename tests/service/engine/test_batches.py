"""The choice of a batch: hand-worked cases, and that it never loses to computing the windows one by one."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from pocketqa.types import RuntimeInfo
from service.engine.batches import ROWS, Plan, Traits
from service.engine.cost import Cost
from service.engine.promises import Candidate

INFO = RuntimeInfo("tiny", "1", "fp32", 1)


class Known(Cost):
    """A cost that is known instead of learned."""

    def __init__(self, seconds: Callable[[int, int], float]) -> None:
        super().__init__()
        self._known = seconds

    def seconds(self, rows: int, length: int) -> float:
        return self._known(rows, length)


def fixed_part(rows: int, length: int) -> float:
    """10 for the pass and 1 for every 32 positions."""
    return 10 + rows * length / 32


def superlinear(rows: int, length: int) -> float:
    """Two rows together cost more than two apart."""
    return float(rows**1.5 * length)


def waiting(*lengths: int) -> list[Candidate]:
    return [Candidate(length, object()) for length in lengths]


def test_windows_are_padded_to_multiples_of_8_or_16_batches_to_those_of_32_or_all_to_the_lengths_of_the_engine() -> None:
    free, fixed = Traits(INFO, None, None), Traits(INFO, (128, 384), None)
    assert [free.padded(tokens) for tokens in (1, 8, 9, 384, 500, 512)] == [8, 8, 16, 384, 504, 512]
    assert [fixed.padded(tokens) for tokens in (1, 128, 129, 384)] == [128, 128, 384, 384]
    # A processor with AMX multiplies 16 rows at a time.
    for precision, engine, expected in (("bf16", "openvino", 16), ("int8", "openvino", 16), ("fp32", "openvino", 8), ("int8", "onnxruntime", 8)):
        assert Traits(RuntimeInfo(engine, "1", precision, 1), None, None).padded(1) == expected
    assert [free.widened(length) for length in (8, 32, 40, 504)] == [32, 32, 64, 512]
    assert [fixed.widened(length) for length in (128, 384)] == [128, 384]


def test_like_windows_are_computed_together_in_a_count_from_the_list() -> None:
    plan = Plan(Known(fixed_part), 4096)
    assert plan.choose(waiting(128)) == [0]
    assert plan.choose(waiting(128, 128, 128)) == [0, 1, 2]
    assert plan.choose(waiting(*[128] * 7)) == [0, 1, 2, 3, 4, 5]
    # The budget allows 32 at 10 / 32 + 4 = 4.31 each; 24 at 4.42 are within three percent of that, 16 at 4.63 are not.
    assert len(plan.choose(waiting(*[128] * 100))) == 24


def test_batches_that_would_lose_are_not_made() -> None:
    plan = Plan(Known(superlinear), 4096)
    assert plan.choose(waiting(128, 128, 128, 128)) == [0]
    assert plan.best_rows(128) == 1


def test_a_batch_that_saves_less_than_a_tenth_is_not_worth_its_waiting() -> None:
    def plan(share: float) -> Plan:
        return Plan(Known(lambda rows, length: rows * length * (share if rows > 1 else 1.0)), 4096)

    assert plan(0.91).choose(waiting(128, 128, 128)) == [0]
    assert plan(0.91).best_rows(128) == 1
    # 0.87 with the 3 % that are given for shorter batches is below nine tenths, and two rows are as good as more.
    assert plan(0.87).choose(waiting(128, 128, 128)) == [0, 1]


def test_a_short_window_is_not_padded_to_a_long_one_where_that_costs_more_than_it_saves() -> None:
    plan = Plan(Known(fixed_part), 4096)
    # Together 10 + 2 x 384/32 = 34, apart (10 + 12) + (10 + 1) = 33.
    assert plan.choose(waiting(384, 32)) == [0]
    # Together 10 + 2 x 12 = 34, apart 22 + (10 + 8) = 40.
    assert plan.choose(waiting(384, 256)) == [0, 1]
    # The head is never left behind, and a longer one may take it along: together 34, apart 18 + 22 = 40.
    assert plan.choose(waiting(256, 384)) == [0, 1]


def test_of_several_groups_the_one_that_saves_most_is_taken() -> None:
    plan = Plan(Known(fixed_part), 4096)
    # With the two of its own length the head saves 20; with the long one as well it would save less: 4 x 12 + 10 = 58 against 3 x 11 + 22.
    assert plan.choose(waiting(32, 384, 32, 32)) == [0, 2, 3]


def test_the_windows_of_a_request_come_before_those_of_others() -> None:
    plan = Plan(Known(fixed_part), 3 * 128)
    mine, other = object(), object()
    candidates = [Candidate(128, mine), Candidate(128, other), Candidate(128, other), Candidate(128, mine), Candidate(128, mine)]
    assert sorted(plan.choose(candidates)) == [0, 3, 4]


def test_what_failed_in_company_is_tried_by_itself() -> None:
    plan = Plan(Known(fixed_part), 4096)
    candidates = waiting(128, 128, 128)
    candidates[0].alone = True
    assert plan.choose(candidates) == [0]
    candidates[0].alone, candidates[1].alone = False, True
    assert plan.choose(candidates) == [0, 2]


def test_an_engine_of_one_row_and_batching_switched_off_are_heeded() -> None:
    for plan in (Plan(Known(fixed_part), 4096, max_batch=1), Plan(Known(fixed_part), 4096, batching=False)):
        assert plan.choose(waiting(128, 128)) == [0]
        assert plan.row_counts(128) == (1,)
    assert Plan(Known(fixed_part), 4096, max_batch=5).row_counts(128) == (1, 2, 3, 4)


def test_a_window_larger_than_the_budget_is_still_computed() -> None:
    assert Plan(Known(fixed_part), 64).choose(waiting(384, 384)) == [0]


def test_what_waits_is_predicted_in_full_batches_and_a_rest() -> None:
    plan = Plan(Known(fixed_part), 4 * 128)
    assert plan.best_rows(128) == 4
    # Two batches of four: 2 x (10 + 16).  Nine: and one of one, 10 + 4.
    assert plan.drain_seconds({128: 8}) == 52
    assert plan.drain_seconds({128: 9}) == 66
    assert plan.drain_seconds({128: 4, 384: 1}) == 26 + 22
    assert plan.drain_seconds({}) == 0


@given(
    lengths=st.lists(st.integers(1, 16).map(lambda n: 32 * n), min_size=1, max_size=40),
    fixed=st.floats(0, 50),
    power=st.floats(0.5, 2.0),
    budget=st.integers(32, 4096),
)
def test_a_batch_never_costs_more_than_its_windows_one_by_one(lengths: list[int], fixed: float, power: float, budget: int) -> None:
    cost = Known(lambda rows, length: fixed + rows**power * length)
    plan = Plan(cost, budget)
    chosen = plan.choose(waiting(*lengths))
    longest = max(lengths[i] for i in chosen)
    assert chosen[0] == 0
    assert len(set(chosen)) == len(chosen)
    assert len(chosen) in ROWS
    assert len(chosen) == 1 or len(chosen) * longest <= budget
    together, apart = cost.seconds(len(chosen), longest), sum(cost.seconds(1, lengths[i]) for i in chosen)
    assert together <= apart * (1 + 1e-9)
