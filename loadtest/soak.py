"""A soak: a hundred thousand requests of every kind to one service, clients that leave among them, while memory, files and threads are watched.

    python -m loadtest.soak
    python -m loadtest.soak --requests 2000 --out soak.json

The service is started for it and ended by SIGTERM.  Slopes are those of straight lines through the samples after the first fifth, in which caches
fill and the engine meets every shape.  The exit status is 1 when memory grows by more than 1 MiB in 10,000 requests, when open files or threads
grow, when a request is answered otherwise than it should be, or when the service does not end by itself.  A client that is told to come back later
(429) does so, after the time that it is told.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from loadtest.closed_loop import READ_BYTES, TIMEOUT, ExchangeError, exchange, header, post
from loadtest.processes import STOP_SECONDS, Server, Usage, python
from loadtest.questions import Question, load_questions
from pocketqa.errors import PocketQAError

MEBIBYTE = 1 << 20
MAX_MEMORY_SLOPE = 1.0  # MiB in 10,000 requests
MAX_COUNT_SLOPE = 1.0  # files or threads in 10,000 requests
SETTLED = 0.2  # share of the samples that are not counted
LEAST_SAMPLES = 5  # of which three and more are counted
OVERLOADED = 429
LEAVING_BYTES = 40  # of a request, after which a client that leaves early is gone


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of request: the status it should get, and how often it is sent.  leaves: the client goes away without its answer."""

    name: str
    status: int
    weight: int
    leaves: bool = False


ANSWER = Kind("answer", 200, 60)
COMPARE = Kind("compare", 200, 10)
LONG = Kind("long passage", 200, 4)
MALFORMED = Kind("malformed body", 400, 8)
INVALID = Kind("invalid request", 422, 8)
HALF = Kind("client leaves in the middle of its request", 0, 4, leaves=True)
IMPATIENT = Kind("client leaves before its answer", 0, 6, leaves=True)
KINDS = (ANSWER, COMPARE, LONG, MALFORMED, INVALID, HALF, IMPATIENT)


@dataclass(frozen=True, slots=True)
class Sample:
    """What the service used after so many requests."""

    requests: int
    seconds: float
    memory_mib: float
    files: int
    threads: int


@dataclass(frozen=True, slots=True)
class Slopes:
    """Growth in 10,000 requests."""

    memory_mib: float
    files: float
    threads: float

    def problems(self) -> list[str]:
        """What grows."""
        found = []
        if self.memory_mib > MAX_MEMORY_SLOPE:
            found.append(f"memory grows by {self.memory_mib:.2f} MiB in 10,000 requests, expected at most {MAX_MEMORY_SLOPE:g}")
        for what, slope in (("open files", self.files), ("threads", self.threads)):
            if slope > MAX_COUNT_SLOPE:
                found.append(f"{what} grow by {slope:.2f} in 10,000 requests, expected at most {MAX_COUNT_SLOPE:g}")
        return found


def main(argv: list[str]) -> int:
    """Run the soak; the exit status."""
    given = _parse(argv)
    command = python("pocketqa", "serve", "--host", "127.0.0.1", "--port", "0", *given.serve_options)
    server = Server("PocketQA", command, ())
    try:
        server.wait()
        samples, wrong, sent_back = asyncio.run(soak(server, load_questions(), given.requests, given.users, given.samples, given.seed))
        status = end(server)
    except PocketQAError as error:
        print(f"soak: {error}", file=sys.stderr)
        return 2
    finally:
        server.stop()
    slopes = slopes_of(samples)
    problems = [*slopes.problems(), *(f"{count} times {what}" for what, count in sorted(wrong.items()))]
    if status != 0:
        problems.append(f"the service ended with the status {status} after SIGTERM, expected 0")
    document = {
        "requests": samples[-1].requests,
        "sent_back": sent_back,
        "slopes": asdict(slopes),
        "samples": [asdict(sample) for sample in samples],
        "problems": problems,
    }
    if given.out:
        given.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    grown = f"memory {slopes.memory_mib:+.3f} MiB, files {slopes.files:+.3f}, threads {slopes.threads:+.3f} in 10,000 requests"
    print(f"{samples[-1].requests:,} requests in {samples[-1].seconds:.0f} s, {sent_back:,} times told to come back later: {grown}.")
    print("\n".join(problems) or "Nothing grows, and every request was answered as it should be.")
    return int(bool(problems))


async def soak(
    server: Server, questions: Sequence[Question], requests: int, users: int, samples: int, seed: int
) -> tuple[list[Sample], Counter[str], int]:
    """Send the requests from so many users; samples on the way, how often what went wrong, and how often a client was told to come back later."""
    plan = plan_of(questions, requests, seed)
    wrong: Counter[str] = Counter()
    taken: list[Sample] = []
    every = max(1, requests // samples)
    done = sent_back = 0
    began = time.monotonic()

    async def user() -> None:
        nonlocal done, sent_back
        line = Line(server.port)
        for kind, request in plan:
            try:
                status = await line.send(kind, request, done)
                if status != kind.status:
                    wrong[f"{kind.name}: expected status {kind.status}, found {status}"] += 1
            except (ExchangeError, OSError, TimeoutError) as error:
                wrong[f"{kind.name}: {type(error).__name__}"] += 1
                line.drop()
            done += 1
            if done % every == 0:
                taken.append(sample(server.usage(), done, time.monotonic() - began))
                print(f"{done:,} of {requests:,}: {taken[-1].memory_mib:.1f} MiB", file=sys.stderr, flush=True)
        line.drop()
        sent_back += line.sent_back

    async with asyncio.TaskGroup() as group:
        for _ in range(users):
            group.create_task(user())
    return taken, wrong, sent_back


class Line:
    """A user's connection, opened anew after it was left."""

    def __init__(self, port: int) -> None:
        self.sent_back = 0  # how often a request was told to come back later
        self._port = port
        self._open: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, kind: Kind, request: bytes, number: int) -> int:
        """One request of a kind, again for as long as it is told to come back; its status, 0 where the client left.

        Raises ExchangeError, OSError, TimeoutError.
        """
        while True:
            if self._open is None:
                self._open = await asyncio.open_connection("127.0.0.1", self._port, limit=READ_BYTES)
            reader, writer = self._open
            if kind.leaves:
                writer.write(request[:LEAVING_BYTES] if kind is HALF else request)
                await writer.drain()
                self.drop()
                return 0
            found = await asyncio.wait_for(exchange(reader, writer, number, request), TIMEOUT)
            if found.status != OVERLOADED:
                return found.status
            self.sent_back += 1
            self.drop()  # an idle connection may be closed meanwhile
            await asyncio.sleep(retry_after(found.headers))

    def drop(self) -> None:
        """Close the connection."""
        if self._open is not None:
            self._open[1].close()
            self._open = None


def retry_after(head: bytes) -> float:
    """The seconds that a 429 tells its client to wait.  Raises ExchangeError where it does not."""
    found = header(head, "retry-after")
    if found is None or not found.isdigit():
        raise ExchangeError(f"Expected a 429 with whole seconds in Retry-After, found {found!r}.")
    return float(found)


def plan_of(questions: Sequence[Question], requests: int, seed: int) -> Iterator[tuple[Kind, bytes]]:
    """So many requests of all kinds in random order."""
    choice = random.Random(seed)
    longest = " ".join(question.context for question in questions)[:20_000]
    for _ in range(requests):
        kind = choice.choices(KINDS, [kind.weight for kind in KINDS])[0]
        yield kind, request_of(kind, choice.choice(questions), longest, choice.choice(("teacher", "student")))


def request_of(kind: Kind, question: Question, longest: str, model: str) -> bytes:
    """The bytes of a request of a kind."""
    body: dict[str, object] = {"question": question.text, "context": question.context}
    if kind is MALFORMED:
        return post("/v1/answer", json.dumps(body).encode()[:-1])
    if kind is COMPARE:
        return post("/v1/compare", json.dumps(body).encode())
    body["model"] = model
    if kind is LONG:
        body |= {"context": longest, "model": "student"}
    if kind is INVALID:
        body["top_k"] = "3"
    return post("/v1/answer", json.dumps(body).encode())


def sample(usage: Usage, requests: int, seconds: float) -> Sample:
    """What the service uses at this moment."""
    return Sample(requests, round(seconds, 1), round(usage.memory / MEBIBYTE, 2), usage.files, usage.threads)


def slopes_of(samples: Sequence[Sample]) -> Slopes:
    """Growth in 10,000 requests: least squares over the samples after the first fifth.  Raises ValueError for fewer than three of these."""
    counted = samples[int(len(samples) * SETTLED) :]
    if len(counted) < 3:
        raise ValueError(f"Expected at least three samples after the first fifth, found {len(counted)}; take more with --samples.")
    at = np.array([one.requests for one in counted]) / 10_000  # (S,)
    values = np.array([(one.memory_mib, one.files, one.threads) for one in counted], dtype=np.float64)  # (S, 3)
    return Slopes(*(round(float(slope), 4) for slope in np.polyfit(at, values, 1)[0]))


def end(server: Server) -> int | None:
    """The exit status after SIGTERM; None where it did not end."""
    server.process.send_signal(signal.SIGTERM)
    ends = time.monotonic() + STOP_SECONDS
    while server.process.poll() is None and time.monotonic() < ends:
        time.sleep(0.05)
    return server.process.poll()


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--requests", type=int, default=100_000, help="how many (default: %(default)s)")
    parser.add_argument("--users", type=int, default=8, help="at once (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=50, help="of memory, files and threads on the way (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of kinds and questions (default: %(default)s)")
    parser.add_argument("--serve-options", type=str.split, default=[], metavar="TEXT", help='options of `pocketqa serve`, as "--engine onnxruntime"')
    parser.add_argument("--out", type=Path, metavar="FILE", help="write samples and slopes as JSON")
    given = parser.parse_args(argv)
    for name, least in (("users", 1), ("samples", LEAST_SAMPLES), ("requests", given.samples)):
        if getattr(given, name) < least:
            parser.error(f"--{name} must be at least {least}, found {getattr(given, name)}")
    return given


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
