"""Run an artefact in a process of its own, which is given the path of the bundle and token ids, and nothing else.

What it answers can then only come from the saved bytes: the checkpoint, its folder and its PyTorch model are never within reach.

    with IsolatedRuntime(Path("Student")) as runtime:
        logits = runtime.forward(batch)

The two sides exchange messages over the child's standard input and output: the length of a JSON header (uint32, little-endian), the header, and as
many bytes after it as the header's "bytes" says (int32 ids going there, float32 logits coming back).  The child ends when its input ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import struct
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import numpy as np

from mobile_export.verification.artefact import Artefact
from pocketqa import errors
from pocketqa.chatter import hush
from pocketqa.errors import EngineError, PocketQAError
from pocketqa.types import JSON, Batch, RuntimeInfo, SpanLogits

PARTS = ("ids", "token_types", "mask")  # of a Batch, in the order in which they are sent


class IsolatedRuntime:
    """A pocketqa Runtime whose engine runs in a child process.  `facts` is what the child read off the package as it opened it (`Artefact.facts`)."""

    def __init__(self, bundle: Path, engine: str | None = None, threads: int | None = None, unit: str = "all") -> None:
        """Start the child and wait until it has opened the bundle.  Raises what opening it raises (FolderError, EngineError, MissingExtra)."""
        root = Path(__file__).resolve().parents[2]
        path = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH", ""))))
        command = [sys.executable, "-m", __name__, str(bundle.resolve()), engine or "", str(threads or 0), unit]
        pipe, environment = subprocess.PIPE, os.environ | {"PYTHONPATH": path}
        self._child = subprocess.Popen(command, cwd=root.anchor, env=environment, stdin=pipe, stdout=pipe)
        self._lock = threading.Lock()
        try:
            self.facts, _ = self._receive()
        except BaseException:
            self.close()
            raise
        self.info = RuntimeInfo(**self.facts["info"])
        self.lengths: tuple[int, ...] | None = tuple(self.facts["lengths"])
        self.max_batch: int | None = self.facts["max_batch"]

    def forward(self, batch: Batch) -> SpanLogits:
        """Logits (B, T).  Raises EngineError."""
        _, content = self._ask("forward", batch)
        start, end = np.frombuffer(content, "<f4").reshape(2, *batch.shape)  # (B, T) each
        return SpanLogits(start, end)

    def watch(self, batch: Batch) -> JSON:
        """What each operation left of a batch, see `Artefact.watch`.  Raises EngineError."""
        return self._ask("watch", batch)[0]

    def trace(self) -> JSON:
        """The artefact's operations beside the network that was exported, see `Artefact.trace`.  Raises EngineError."""
        return self._ask("trace")[0]

    def close(self) -> None:
        """End the child."""
        self._child.kill()
        self._child.wait()
        for stream in (self._child.stdin, self._child.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):  # a message that it no longer read
                    stream.close()

    def __enter__(self) -> Self:
        """The runtime itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End the child."""
        self.close()

    def _ask(self, what: str, batch: Batch | None = None) -> tuple[JSON, bytes]:
        header: JSON = {"do": what}
        content = b""
        if batch is not None:
            content = b"".join(getattr(batch, part).astype("<i4").tobytes() for part in PARTS)
            header |= {"shape": batch.shape, "bytes": len(content)}
        with self._lock:
            try:
                assert self._child.stdin is not None
                _send(self._child.stdin, header, content)
            except (BrokenPipeError, ValueError):  # it has died; a closed stream is a ValueError
                raise EngineError(self._died()) from None
            return self._receive()

    def _receive(self) -> tuple[JSON, bytes]:
        assert self._child.stdout is not None
        message = _receive(self._child.stdout)
        if message is None:
            raise EngineError(self._died())
        header, content = message
        if "error" in header:
            kind = getattr(errors, header["error"], EngineError)
            error = EngineError.__new__(kind)  # MissingExtra has a constructor of its own
            Exception.__init__(error, header["message"])
            raise error
        return header, content

    def _died(self) -> str:
        status = self._child.wait()
        killed = " (killed: is there enough memory?)" if status == -signal.SIGKILL else ""
        return f"The process that runs the artefact ended with status {status}{killed}; what it said stands above. Try again with fewer --threads."


def main(argv: list[str]) -> int:
    """The child: open the bundle, then answer messages until there are no more."""
    hush()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this process
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get between the messages
    bundle, engine, threads, unit = argv
    try:
        artefact = Artefact(Path(bundle), engine or None, int(threads) or None, unit)
        _send(replies, artefact.facts())
        while (message := _receive(sys.stdin.buffer)) is not None:
            _send(replies, *_reply(artefact, *message))
    except PocketQAError as error:
        _send(replies, {"error": type(error).__name__, "message": str(error)})
        return 1
    return 0


def _reply(artefact: Artefact, header: JSON, content: bytes) -> tuple[JSON, bytes]:
    if header["do"] == "trace":
        return artefact.trace(), b""
    batch = Batch(*np.frombuffer(content, "<i4").reshape(len(PARTS), *header["shape"]))  # (3, B, T)
    if header["do"] == "watch":
        return artefact.watch(batch), b""
    logits = artefact.runtime.forward(batch)
    answer = np.stack((logits.start, logits.end)).astype("<f4").tobytes()
    return {"bytes": len(answer)}, answer


def _send(stream: IO[bytes], header: JSON, content: bytes = b"") -> None:
    text = json.dumps(header).encode()
    stream.write(struct.pack("<I", len(text)) + text + content)
    stream.flush()


def _receive(stream: IO[bytes]) -> tuple[JSON, bytes] | None:
    """Header and content, or None where the stream ended, be it within a message."""
    size = stream.read(4)
    if len(size) < 4:
        return None
    text = stream.read(struct.unpack("<I", size)[0])
    try:
        header: JSON = json.loads(text)
    except ValueError:
        return None
    content = stream.read(header.get("bytes", 0))
    return (header, content) if len(content) == header.get("bytes", 0) else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
