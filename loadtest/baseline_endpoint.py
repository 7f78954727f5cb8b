"""The endpoint that both baseline servers share: Hugging Face's question-answering JSON, one request in the model at a time.

What stands here is what people write around a model, done fairly: the model runs off the event loop, in one thread, so that the server keeps taking
requests meanwhile; two forward passes at once would only share the cores.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from pocketqa.runtimes import usable_cores

Answerer = Callable[[str, str, dict[str, Any]], dict[str, Any]]
WARM_UP = ("Who built the mill?", "The mill by the river was built by Ada in 1902. " * 12)


class Inputs(BaseModel):
    """A question on a passage."""

    question: str
    context: str


class Asked(BaseModel):
    """The body of a request."""

    inputs: Inputs
    parameters: dict[str, Any] = {}


def parse(argv: Sequence[str], doc: str, precisions: Sequence[str]) -> argparse.Namespace:
    """The options of a baseline server."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, metavar="DIR", help="model folder made by `pocketqa package`")
    parser.add_argument("--precision", choices=precisions, default=precisions[0], help="of the arithmetic (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="of the engine (default: the cores that this process may use)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=0, help="port to listen on; 0, the default, takes a free one")
    return parser.parse_args(argv)


def serve(answer: Answerer, info: dict[str, Any], host: str, port: int) -> None:
    """Answer on POST / until interrupted, once the model is warm; GET /info says what computes."""
    answer(*WARM_UP, {})
    app = FastAPI()
    model = ThreadPoolExecutor(1)

    @app.post("/")
    async def ask(asked: Asked) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(model, answer, asked.inputs.question, asked.inputs.context, asked.parameters)

    @app.get("/info")
    async def about() -> dict[str, Any]:
        return info

    listener = socket.create_server((host, port), backlog=2048)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as uvicorn has it when it makes the socket itself
    print(f"Ready on http://{host}:{listener.getsockname()[1]} with {info['engine']} {info['precision']}.", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run(sockets=[listener])
