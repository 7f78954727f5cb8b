"""SIGTERM: not ready at once, still there for a while, every accepted request answered, then gone."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from service.app import create_app
from service.draining import DrainingServer
from service.edge.server import config
from service.serve import listen
from service.settings import Settings
from tests.service.tiny_pair import make_pair
from tests.service.waiting import until

ASK = json.dumps({"question": "who?", "context": "built by Ada", "model": "teacher"}).encode()


class Client:
    """A connection that is kept."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def connect(cls, port: int) -> Client:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    def send(self, path: str, body: bytes | None = None) -> None:
        head = f"{'GET' if body is None else 'POST'} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        if body is not None:
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        self.writer.write(f"{head}\r\n".encode() + (body or b""))

    async def receive(self) -> tuple[int, dict[str, str], dict[str, object]]:
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:] if line)}
        return int(lines[0].split()[1]), headers, json.loads(await self.reader.readexactly(int(headers["content-length"])))

    async def ask(self, path: str) -> tuple[int, dict[str, str], dict[str, object]]:
        self.send(path)
        return await self.receive()


def test_the_leave_is_taken_in_order(tmp_path: Path) -> None:
    gate = threading.Event()
    settings = Settings(access_log=False)

    async def scene() -> None:
        app = create_app(settings, make_pair(tmp_path, gate=gate))
        listener = listen("127.0.0.1", 0)
        port = listener.getsockname()[1]
        server = DrainingServer(config(app, settings), app.state.service.drain, seconds=1.0)
        serving = asyncio.create_task(server.serve([listener]))
        await until(lambda: server.started)

        kept, working = await Client.connect(port), await Client.connect(port)
        status, headers, _ = await kept.ask("/readyz")
        assert (status, "connection" in headers) == (200, False)
        working.send("/v1/answer", ASK)
        await until(lambda: not app.state.service.inference._scheduler.idle)

        server.handle_exit(signal.SIGTERM, None)
        await until(lambda: app.state.service.draining)
        status, headers, body = await kept.ask("/readyz")
        assert (status, headers["connection"], headers["retry-after"]) == (503, "close", "1")
        assert body["error"]["code"] == "draining"  # type: ignore[index]
        assert await kept.reader.read() == b""  # and it was closed
        late = await Client.connect(port)
        status, headers, body = await late.ask("/livez")
        assert (status, headers["connection"], body) == (200, "close", {"status": "alive"})

        with pytest.raises(ConnectionRefusedError):
            while not serving.done():
                with suppress(ConnectionResetError):  # in the moment in which the listener closed
                    _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.close()
                await asyncio.sleep(0.05)
        assert not serving.done()  # one answer is still owed
        gate.set()
        status, _, body = await working.receive()
        assert (status, body["answers"][0]["text"]) == (200, "Ada")  # type: ignore[index]
        await asyncio.wait_for(serving, 20)
        for client in (kept, working, late):
            client.writer.close()
            await client.writer.wait_closed()

    asyncio.run(scene())


def test_a_second_sigterm_ends_the_waiting(tmp_path: Path) -> None:
    settings = Settings(access_log=False)

    async def scene() -> None:
        app = create_app(settings, make_pair(tmp_path))
        server = DrainingServer(config(app, settings), app.state.service.drain, seconds=600)
        serving = asyncio.create_task(server.serve([listen("127.0.0.1", 0)]))
        await until(lambda: server.started)
        server.handle_exit(signal.SIGTERM, None)
        await until(lambda: app.state.service.draining)
        assert not server.should_exit
        server.handle_exit(signal.SIGTERM, None)
        await asyncio.wait_for(serving, 20)

    asyncio.run(scene())


def test_before_it_listens_sigterm_ends_it_at_once(tmp_path: Path) -> None:
    settings = Settings(access_log=False)
    app = create_app(settings, make_pair(tmp_path))
    server = DrainingServer(config(app, settings), app.state.service.drain, seconds=600)
    server.handle_exit(signal.SIGTERM, None)
    assert server.should_exit
