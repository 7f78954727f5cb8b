"""One worker process as the service sees it: started, spoken to over a socket, and noticed the moment it ends.

The socket is the leash.  When the service ends, however it ends, the worker reads the end of the stream and ends too; when the worker ends, the
service's end of the socket closes, and whoever waits for a result is told at once.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from typing import Any, cast

from pocketqa import errors
from pocketqa.errors import EngineError, PocketQAError
from pocketqa.types import Batch
from service.engine.frames import HEADER_BYTES, Frame, FrameError, Header, Job, Kind, Text, decode, encode, read_header
from service.engine.lanes import Forwarded
from service.errors import WorkerLost
from service.schemas import Role

MODULE = "service.engine.worker"
_MOST_NUMBERS = (1 << 32) - 1
# For glibc's malloc in a worker: weights and activations come from its heap, which asks for huge pages, and not in mappings of their own, most of
# which are too small for one.  Small pages lie scattered in the memory of a machine that has run for a while, above all of a virtual one, and to find
# them takes time in every pass.  Where nobody may have huge pages, and in other C libraries, this does nothing.
HUGE_PAGES = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=33554432:glibc.malloc.trim_threshold=67108864"
END_SECONDS = 5.0  # for a worker to end by itself once its socket is closed
_KNOWN = (errors.IncompleteFolder, errors.CorruptFolder, errors.StaleGraph, errors.FolderError, errors.VocabularyMismatch, errors.OptionsError)


class Worker(asyncio.Protocol):
    """A running worker process.

    ready: what it opened (the READY frame), or why it could not.
    """

    def __init__(self, process: subprocess.Popen[bytes], hang_seconds: float) -> None:
        loop = asyncio.get_running_loop()
        self.process = process
        self.began = time.monotonic()
        self.alive = True
        self.ready: asyncio.Future[dict[str, Any]] = loop.create_future()
        self._ended = asyncio.Event()
        self._reason = ""
        self._hang_seconds = hang_seconds
        self._buffer = bytearray()
        self._header: Header | None = None
        self._number = 0
        self._pending: dict[int, _Pending] = {}
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def start(cls, opening: dict[str, Any], hang_seconds: float, module: str = MODULE) -> Worker:
        """Start a process and tell it what to open; `ready` tells when it has.  hang_seconds: a batch that takes longer counts as a hang."""
        ours, theirs = socket.socketpair()
        try:
            process = _spawn(module, theirs)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        worker = cls(process, hang_seconds)
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: worker, sock=ours)
        except BaseException:
            ours.close()
            await worker.end()
            raise
        worker._send(Text(Kind.OPEN, opening))
        return worker

    def forward(self, role: Role, batch: Batch) -> asyncio.Future[Forwarded]:
        """Send a batch; the future is that of its result.  Raises, in the future, WorkerLost or what the engine failed with."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Forwarded] = loop.create_future()
        if not self.alive:
            future.set_exception(WorkerLost("The process that computes has ended."))
            return future
        self._number = self._number % _MOST_NUMBERS + 1  # 0 is for what is about no job
        alarm = loop.call_later(self._hang_seconds, self._lose, f"computed a batch for more than {self._hang_seconds:g} seconds")
        self._pending[self._number] = _Pending(future, role, batch.shape, alarm)
        self._send(Job(self._number, role, batch))
        return future

    async def lost(self) -> str:
        """Wait until it has ended.  Returns what happened, in a few words."""
        await self._ended.wait()
        return self._reason

    async def end(self) -> None:
        """Close the socket and wait for the process, which is killed if it does not end by itself."""
        if self._transport is not None:
            self._transport.close()
        if not self.ready.done():
            self.process.kill()  # it is busy opening the models and would read the end of the stream only afterwards
        try:
            await asyncio.to_thread(self.process.wait, END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            await asyncio.to_thread(self.process.wait)

    @property
    def status(self) -> str:
        """How the process ended, in words."""
        code = self.process.poll()
        if code is None:
            return "still running"
        return f"exit status {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Part of asyncio.Protocol."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Part of asyncio.Protocol: frames, in pieces of any size."""
        self._buffer += data
        try:
            while self.alive and (frame := self._next_frame()) is not None:
                self._take(frame)
        except FrameError as error:
            self._lose(f"sent what is no frame: {error}")

    def connection_lost(self, error: Exception | None) -> None:
        """Part of asyncio.Protocol: the worker ended, or we closed the socket."""
        self._lose("ended")

    def _next_frame(self) -> Frame | None:
        if self._header is None:
            if len(self._buffer) < HEADER_BYTES:
                return None
            self._header = read_header(self._buffer[:HEADER_BYTES])
        end = HEADER_BYTES + self._header.size
        if len(self._buffer) < end:
            return None
        frame = decode(self._header, bytes(self._buffer[HEADER_BYTES:end]))
        del self._buffer[:end]
        self._header = None
        return frame

    def _take(self, frame: Frame) -> None:
        if isinstance(frame, Text) and frame.number == 0:
            if self.ready.done() or frame.kind == Kind.OPEN:
                raise FrameError(f"Expected a result, found a {frame.kind.name} frame.")
            if frame.kind == Kind.READY:
                self.ready.set_result(frame.document)
            else:
                self.ready.set_exception(_error(frame.document))
            return
        pending = self._pending.pop(frame.number, None)
        if pending is None or isinstance(frame, Job):
            raise FrameError("Expected the result of a job that was sent, found another.")
        pending.alarm.cancel()
        if isinstance(frame, Text):
            pending.fail(_error(frame.document))
        elif (frame.role, frame.logits.start.shape) != (pending.role, pending.shape):
            pending.fail(WorkerLost("The process that computes gave the result of another batch."))
            raise FrameError("Expected logits of the shape of the batch, found others.")
        elif not pending.future.done():
            pending.future.set_result(Forwarded(frame.logits, frame.seconds))

    def _send(self, frame: Frame) -> None:
        assert self._transport is not None
        self._transport.write(encode(frame))

    def _lose(self, reason: str) -> None:
        """Once: tell everyone who waits, and see to it that the process is gone."""
        if not self.alive:
            return
        self.alive = False
        if self._transport is not None:
            self._transport.abort()
        if reason != "ended":
            self.process.kill()
        for pending in self._pending.values():
            pending.alarm.cancel()
            pending.fail(WorkerLost("The process that computed the answer ended before it was done; another one takes its place."))
        self._pending.clear()
        if not self.ready.done():
            self.ready.set_exception(EngineError("A worker process ended while it opened the models; the log says more."))
            self.ready.exception()  # whoever started it may have been cancelled
        self._reason = reason
        self._ended.set()


class _Pending:
    """A job that was sent."""

    __slots__ = ("alarm", "future", "role", "shape")

    def __init__(self, future: asyncio.Future[Forwarded], role: Role, shape: tuple[int, int], alarm: asyncio.TimerHandle) -> None:
        self.future, self.role, self.shape, self.alarm = future, role, shape, alarm

    def fail(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)


def _spawn(module: str, theirs: socket.socket) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", module, str(theirs.fileno())],
        pass_fds=(theirs.fileno(),),
        env={"GLIBC_TUNABLES": HUGE_PAGES} | os.environ | {"PYTHONPATH": _python_path()},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,  # its log goes to standard error, as ours does
        start_new_session=True,  # Ctrl+C in a terminal is the service's to handle
    )


def _python_path() -> str:
    """Where this process finds its modules.  The worker must find the same ones, not those of a folder that the service is run in."""
    return os.pathsep.join(os.path.abspath(entry) for entry in sys.path)


def _error(document: dict[str, Any]) -> PocketQAError:
    """The error that a FAILED frame tells of."""
    name, message = str(document.get("error")), str(document.get("message"))
    if name == EngineError.__name__:
        return EngineError(message)
    return next((known(message) for known in _KNOWN if known.__name__ == name), PocketQAError(message))
