"""The tiny pair behind the real server in a process of its own, so that whoever attacks it does not slow it down by sharing its interpreter.

python -m tests.service.edge.tiny_server FOLDER FLAGS...      FOLDER: where the tokenizer is written; FLAGS: those of `pocketqa serve`
"""

from __future__ import annotations

import sys
from pathlib import Path

import uvicorn

from service.app import create_app
from service.edge.server import allow_connections, config
from service.serve import listen
from service.settings import Settings
from tests.service.tiny_pair import make_pair


def main(folder: Path, argv: list[str]) -> None:
    """Print the port, and serve."""
    settings = Settings.read(["--port", "0", *argv], {})
    allow_connections(settings.max_connections)
    listener = listen(settings.host, settings.port)
    app = create_app(settings, make_pair(folder, teacher="ada", student="bell"))
    print(listener.getsockname()[1], flush=True)
    uvicorn.Server(config(app, settings)).run(sockets=[listener])


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
