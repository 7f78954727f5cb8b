"""What batches may cost those who wait: nobody comes much later than if all windows were computed one by one, in the order of their arrival.

Windows of like length make good batches, so one of a rare length would be overtaken again and again.  Therefore a request is promised a time when it
comes: that at which it would be done if all that it finds were computed one by one, and a little later (`promised`).  A batch is taken only where
everybody could still have what was promised if one by one followed.  A batch never costs more than its windows by themselves, so the promise can
always be kept; what earlier batches have saved is room for later ones to overtake.

Promises are made and kept on a clock of work: the predicted seconds of all batches that were begun.  What holds up everybody, such as a worker that
has to be started again, would do so in any order; it is no reason to compute one by one afterwards.  With several lanes, which begin at different
times, a promise is kept to within a batch.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate

LATER = 0.1  # share of its wait one by one by which a request may come later: a quarter measured no more answers a second, and a later last one
UNFELT = 0.01  # seconds by which it may in any case: a few users wait too briefly for a share of that to let them share a batch


def promised(wait: float) -> float:
    """Seconds in which a request is promised to be done that would be after `wait` seconds, were all computed one by one."""
    return wait + max(LATER * wait, UNFELT)


@dataclass(slots=True, eq=False)
class Candidate:
    """A window that waits.

    length: padded.  owner: whose it is.  alone: it was in a batch that failed, and is tried by itself.  model: only windows for one share a batch.
    seconds: what it was predicted to cost by itself when it came.  due: when its request was promised to be done, on the clock of work.
    """

    length: int
    owner: object
    alone: bool = False
    model: str = ""
    seconds: float = 0.0
    due: float = float("inf")


class Line:
    """Windows in the order in which they would be computed one by one, and by how much each may come later."""

    def __init__(self, waiting: Sequence[Candidate], start: float) -> None:
        """start: when the first of them would begin, on the clock of work."""
        self._seconds = [window.seconds for window in waiting]  # (N,)
        self._ends = list(accumulate(self._seconds))  # (N,) of each one by one, from the start
        # Who is late already, since something took longer than predicted, is not made later.
        self._room = [max(0.0, window.due - start - end) for window, end in zip(waiting, self._ends, strict=True)]  # (N,)

    def allows(self, members: Collection[int], seconds: float) -> bool:
        """Whether everybody may wait for these windows to be computed together, in so many seconds, before the others follow one by one."""
        together = frozenset(members)
        ahead = 0.0  # seconds of the members so far, for which nobody behind them has to wait any more
        for i in range(max(together) + 1):  # who waits behind all of them only gains
            if i in together:
                later = seconds - self._ends[i]
                ahead += self._seconds[i]
            else:
                later = seconds - ahead
            if later > self._room[i]:
                return False
        return True
