"""Which waiting windows are computed together: the choice of a batch, a function of what waits and of what batches cost.

Windows are padded to few lengths and taken in few row counts, batches of several rows to fewer lengths still.  Few shapes are met often, so that
the cost of each is known from measurements, and an engine that prepares itself for each new shape (OpenVINO does, for about half a forward pass)
does so seldom.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from pocketqa.types import MAX_WINDOW_TOKENS, RuntimeInfo
from service.engine.cost import Cost
from service.engine.promises import Candidate, Line

STEP, WIDE_STEP = 8, 32  # positions: what a window is padded to a multiple of, by itself and beside others
# In bf16 and int8 the processor multiplies tiles of 16 rows (AMX): a window that fills its last tile takes less time than one of 8 positions less.
TILE_STEP = 16
ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
MAX_ROWS = ROWS[-1]
SLACK = 0.03  # of throughput, given for shorter batches
# Share of its seconds that a batch has to save: its windows come out together, when the last is done, and the others wait for all of them.  Besides,
# costs are measurements, and the choice of the best of many groups picks the one that was measured too low.
WORTH = 0.1
LOOK_AHEAD = 256  # windows, from the one that has waited longest, among which companions are sought


@dataclass(frozen=True, slots=True)
class Traits:
    """What an engine takes: fixed lengths or any, most rows of a batch or any number; the id that fills up a window."""

    info: RuntimeInfo
    lengths: tuple[int, ...] | None
    max_batch: int | None
    pad_id: int = 0

    def padded(self, tokens: int) -> int:
        """The length to which a window of so many tokens is padded.  Windows that no engine takes were refused before."""
        if self.lengths is not None:
            return min((length for length in self.lengths if length >= tokens), default=max(self.lengths))
        tiles = self.info.engine == "openvino" and self.info.precision != "fp32"
        return self._next(tokens, TILE_STEP if tiles else STEP)

    def widened(self, length: int) -> int:
        """The length of a batch of several windows, of which the longest is padded to `length`."""
        return length if self.lengths is not None else self._next(length, WIDE_STEP)

    @staticmethod
    def _next(tokens: int, step: int) -> int:
        return min(-(-tokens // step) * step, MAX_WINDOW_TOKENS)


@dataclass(frozen=True, slots=True)
class Plan:
    """How one model's windows are put into batches."""

    cost: Cost
    budget: int  # positions of a batch
    max_batch: int | None = None
    batching: bool = True
    widened: Callable[[int], int] = int  # as Traits.widened

    def length(self, rows: int, length: int) -> int:
        """The length of a batch of so many windows, of which the longest is padded to `length`."""
        return length if rows == 1 else self.widened(length)

    def seconds(self, rows: int, length: int) -> float:
        """Predicted seconds of that batch."""
        return self.cost.seconds(rows, self.length(rows, length))

    def row_counts(self, length: int) -> tuple[int, ...]:
        """The row counts that a batch of this length may have."""
        most = min(self.budget // self.widened(length), self.max_batch or MAX_ROWS, MAX_ROWS) if self.batching else 1
        return tuple(rows for rows in ROWS if rows == 1 or rows <= most)

    def best_rows(self, length: int) -> int:
        """The row count with the least seconds a window; where a smaller one is about as good, that: its first window need not wait so long.  One
        where more are not worth while."""
        shares = {rows: self.seconds(rows, length) / rows for rows in self.row_counts(length)}
        good_enough = min(shares.values()) * (1 + SLACK)
        if good_enough > (1 - WORTH) * shares[1]:
            return 1
        return next(rows for rows, share in shares.items() if share <= good_enough)

    def drain_seconds(self, waiting: Mapping[int, int]) -> float:
        """Predicted seconds for so many windows of each length."""
        total = 0.0
        for length, count in waiting.items():
            best = self.best_rows(length)
            whole, rest = divmod(count, best)
            total += whole * self.seconds(best, length)
            if rest:
                # A full batch of the nearest smaller count, and its share for what is left over.
                rows = max(rows for rows in self.row_counts(length) if rows <= rest)
                total += self.seconds(rows, length) * rest / rows
        return total

    def choose(self, waiting: Sequence[Candidate], start: float = 0.0) -> list[int]:
        """Indices of the windows of the next batch, the first of `waiting` among them.

        Of all groups of similar length, as many rows as are worth while, it takes the one that saves most against computing each window by itself
        and that breaks no promise.  The first window alone saves nothing, so a batch is taken only where the measurements say that it is worth while.

        waiting: the windows for all models in the order of arrival.  start: when the batch would begin, on the clock of promises.
        """
        near = waiting[:LOOK_AHEAD]
        head = near[0]
        chosen = [0]
        others = [i for i in range(1, len(near)) if near[i].model == head.model and not near[i].alone]
        if head.alone or not self.batching or not others:
            return chosen
        # Longest first.  Of those that would be padded to one length it makes no difference to the cost which are taken: the head's own request comes
        # first, and then whoever has waited longest.
        others.sort(key=lambda i: (-self.widened(near[i].length), near[i].owner is not head.owner, i))
        alone = {length: self.seconds(1, length) for length in {near[i].length for i in (0, *others)}}
        line = Line(near, start)
        most_saved = 0.0
        for length in sorted({self.widened(length) for length in alone if length >= head.length}):
            fitting = [0, *(i for i in others if near[i].length <= length)][: self.best_rows(length)]
            apart = list(accumulate(alone[near[i].length] for i in fitting))  # (rows,)
            for rows in self.row_counts(length):
                if not 1 < rows <= len(fitting):
                    continue
                seconds = self.seconds(rows, length)
                saved = apart[rows - 1] - seconds
                if saved > max(most_saved, WORTH * apart[rows - 1]) and line.allows(fitting[:rows], seconds):
                    chosen, most_saved = fitting[:rows], saved
        return chosen
