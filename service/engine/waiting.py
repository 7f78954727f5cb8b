"""What waits for one model: the windows of requests, by the arrival of their requests, counted by length."""

from __future__ import annotations

import asyncio
import bisect
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from pocketqa.types import Floats, Window
from service.engine.promises import Candidate
from service.schemas import Role


@dataclass(slots=True, eq=False)
class Work:
    """The windows of one request for one model, on their way.

    arrived, deadline: on the clock of `time.monotonic`.  computed: seconds in which at least one of its windows was in a forward pass, until `until`.
    """

    role: Role
    windows: Sequence[Window]
    arrived: float
    deadline: float
    done: asyncio.Future[None]
    start: Floats  # (W, T)
    end: Floats  # (W, T)
    missing: int
    computed: float = 0.0
    until: float = 0.0


@dataclass(slots=True, eq=False)
class Piece(Candidate):
    """One window of a request."""

    owner: Work
    index: int = 0

    @property
    def tokens(self) -> int:
        """Its positions, without padding."""
        return len(self.owner.windows[self.index])


class Waiting:
    """A queue.  What it shows may be read from another thread while the event loop goes on changing it."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []  # the oldest first
        self.lengths: Counter[int] = Counter()  # padded length -> windows

    def __bool__(self) -> bool:
        return bool(self.pieces)

    @property
    def head(self) -> Work:
        """The request that has waited longest."""
        return self.pieces[0].owner

    def tokens(self) -> int:
        """Positions of all windows, without padding."""
        return sum(piece.tokens for piece in tuple(self.pieces))

    def seconds(self) -> float:
        """Predicted seconds of all windows, one by one."""
        return sum(piece.seconds for piece in self.pieces)

    def requests(self) -> int:
        """How many requests have windows here."""
        return len(self.works())

    def works(self) -> Collection[Work]:
        """The requests that have windows here."""
        return {id(piece.owner): piece.owner for piece in tuple(self.pieces)}.values()

    def add(self, pieces: Iterable[Piece]) -> None:
        """Put windows where the arrival of their request belongs."""
        for piece in pieces:
            bisect.insort(self.pieces, piece, key=lambda other: other.owner.arrived)
            self.lengths[piece.length] += 1

    def promise(self, arrived: float, due: float) -> None:
        """Promise a time to all windows that came at this one: the requests of a list come together, and are waited for together."""
        for piece in self.pieces:
            if piece.owner.arrived == arrived:
                piece.due = due

    def take(self, pieces: Iterable[Piece]) -> None:
        """Take these windows out."""
        self._keep_all_but(set(map(id, pieces)))

    def withdraw(self, work: Work) -> None:
        """Take out what is left of a request."""
        self._keep_all_but({id(piece) for piece in self.pieces if piece.owner is work})

    def _keep_all_but(self, gone: set[int]) -> None:
        self.lengths.subtract(piece.length for piece in self.pieces if id(piece) in gone)
        self.lengths += Counter()  # without those that are down to none
        self.pieces = [piece for piece in self.pieces if id(piece) not in gone]
