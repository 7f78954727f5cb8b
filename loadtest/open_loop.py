"""An open loop over HTTP/1.1, in one process and one thread: requests are sent when they are due, whether or not the ones before were answered.

A closed loop asks a server that stalls less, so its percentiles leave out those who would have waited ("coordinated omission": G. Tene, wrk2,
README).  Here the times of arrival are drawn beforehand, and a latency counts from the time at which its request was due.  A client that could not
keep to its times has measured itself: see `why_void`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from loadtest.closed_loop import READ_BYTES, ExchangeError, exchange, header
from pocketqa.errors import PocketQAError

CONNECTIONS = 512  # at most; one is opened when a request is due and all others are taken
TIMEOUT = 30.0  # seconds from the time at which a request was due
MAX_LAG = 0.010  # seconds
MAX_LAG_SHARE = 0.05  # of the median latency, where that is more
START_SECONDS = 0.05  # between the start of the event loop and the time 0 of the arrivals

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class VoidRun(PocketQAError):
    """The client could not send at the times that it was given, so that what it measured says nothing about the server."""


@dataclass(frozen=True, slots=True)
class Sent:
    """One request and what came of it.

    number: which request; intended: seconds from the start at which it was due; lag: seconds from then to its first byte sent; latency: seconds from
    then to the last byte received, or to the failure; status: 0 where the connection was refused or cut, or the time was up, and `error` says which.
    """

    number: int
    intended: float
    lag: float
    latency: float
    status: int
    headers: bytes = b""
    body: bytes = b""
    error: str = ""


def arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """Times of a Poisson process of `rate` a second, from 0 to `seconds`; of one seed always the same."""
    if not seconds > 0:
        raise ValueError(f"Expected a duration above 0, found {seconds:g} s.")
    return list(itertools.takewhile(lambda at: at < seconds, poisson(rate, seed)))


def poisson(rate: float, seed: int | str) -> Iterator[float]:
    """As `arrivals`, for ever."""
    if not rate > 0:
        raise ValueError(f"Expected a rate above 0, found {rate:g} a second.")
    choice = random.Random(seed)
    return itertools.accumulate(choice.expovariate(rate) for _ in itertools.count())


def run_open_loop(
    port: int, requests: Sequence[bytes], times: Sequence[float], connections: int = CONNECTIONS, timeout: float = TIMEOUT
) -> list[Sent]:
    """Send each request at its time, seconds from the start, in ascending order; returns one record a request, in their order.

    connections: at most so many at once; a request that finds all of them taken waits, and its lag shows it.
    """
    if len(requests) != len(times):
        raise ValueError(f"Expected a time for each of {len(requests)} requests, found {len(times)}.")
    return asyncio.run(_run(_Pool(port, connections), requests, times, timeout))


def lag_limit(latencies: Sequence[float], least: float = MAX_LAG) -> float:
    """The lag, seconds, above which the 99th percentile makes a run void: at least `least`."""
    return max(least, MAX_LAG_SHARE * float(np.median(latencies))) if len(latencies) else least


def why_void(lags: Sequence[float], latencies: Sequence[float], least: float = MAX_LAG) -> str:
    """Why a run says more about the client than about the server, in a sentence; empty where it does not.

    lags, latencies: seconds, one a request; least: lag that is allowed however short the latencies are.
    """
    if not len(lags):
        return "no request was sent"
    p99, limit = float(np.quantile(lags, 0.99)), lag_limit(latencies, least)
    if p99 <= limit:
        return ""
    return f"requests were sent too late: the lag's p99 is {1000 * p99:.1f} ms, and at most {1000 * limit:.1f} ms is allowed"


async def _run(pool: _Pool, requests: Sequence[bytes], times: Sequence[float], timeout: float) -> list[Sent]:
    start = time.perf_counter() + START_SECONDS
    try:
        async with asyncio.TaskGroup() as group:
            tasks = []
            for number, (request, due) in enumerate(zip(requests, times, strict=True)):
                if (wait := start + due - time.perf_counter()) > 0:
                    await asyncio.sleep(wait)
                tasks.append(group.create_task(_send(pool, number, request, start, due, timeout)))
    finally:
        pool.close()
    return [task.result() for task in tasks]


async def _send(pool: _Pool, number: int, request: bytes, start: float, due: float, timeout: float) -> Sent:
    began = None
    try:
        async with asyncio.timeout(start + due + timeout - time.perf_counter()), pool.taken() as connection:
            began = time.perf_counter()
            got = await exchange(*connection, number, request)
            pool.keep(connection, got.headers)
    except (ExchangeError, OSError, TimeoutError) as error:
        now = time.perf_counter()
        cause = error.__cause__ if isinstance(error, ExchangeError) and error.__cause__ else error
        return Sent(number, due, (began or now) - start - due, now - start - due, 0, error=f"{type(cause).__name__}: {error}")
    return Sent(number, due, began - start - due, got.ended - start - due, got.status, got.headers, got.body)


class _Pool:
    """Connections to one port, kept for the next request; the last one used is the next one taken, so that few are kept warm."""

    def __init__(self, port: int, most: int) -> None:
        self._port = port
        self._idle: list[Connection] = []
        self._room = asyncio.Semaphore(most)

    @contextlib.asynccontextmanager
    async def taken(self) -> AsyncIterator[Connection]:
        """A connection that is open as far as can be known; closed afterwards unless `keep` was told of it."""
        async with self._room:
            connection = self._kept() or await asyncio.open_connection("127.0.0.1", self._port, limit=READ_BYTES)
            try:
                yield connection
            finally:
                if connection not in self._idle:
                    connection[1].close()

    def keep(self, connection: Connection, headers: bytes) -> None:
        """For the next request, unless the server says that it closes it."""
        if (header(headers, "connection") or "").lower() != "close":
            self._idle.append(connection)

    def close(self) -> None:
        """All that are kept."""
        for _, writer in self._idle:
            writer.close()

    def _kept(self) -> Connection | None:
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof() and not writer.is_closing():  # the server may have closed it meanwhile
                return reader, writer
            writer.close()
        return None
