"""GET /info: everything one asks of a running service before a bug report: versions, weights, engines, limits, processes and their memory."""

from __future__ import annotations

import os
import platform
import threading
import time
from functools import cache
from importlib import metadata
from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

import pocketqa
from service.api import RunningService, limits
from service.engine.lanes import process_facts
from service.engine.worker import peak_rss
from service.errors import MODEL_ERRORS, documented
from service.schemas import Limits, ModelInfo

router = APIRouter()

_LIBRARIES = ("fastapi", "numpy", "onnxruntime", "openvino", "pydantic", "starlette", "tokenizers", "uvicorn")
_BEGAN = time.monotonic()  # this module is imported as the process starts


class Process(BaseModel):
    """One process of the service."""

    kind: Literal["server", "worker", "shadow"] = Field(
        description="A worker computes; the server does all else, and computes too where there is no worker. The shadow computes what is put to the "
        "teacher to compare, when nobody else wants the processor."
    )
    pid: int
    rss_bytes: int | None = Field(description="Memory that it holds now; pages that processes share count in each. null where no system call tells.")
    peak_rss_bytes: int | None = Field(description="The most memory that it held; a worker's when it was warm.")
    threads: int
    alive_seconds: float
    restarts: int = Field(description="How often it took the place of one that ended.")


class Info(BaseModel):
    """What runs, made of what, within which limits, in which processes."""

    name: Literal["pocketqa"] = "pocketqa"
    version: str
    python: str
    platform: str = Field(description="Operating system and processor architecture.")
    libraries: dict[str, str] = Field(description="Versions of those that are installed of the libraries that matter.")
    models: list[ModelInfo]
    limits: Limits
    shadow: float = Field(description="Share of the student's requests that are put to the teacher too; what came of it is in GET /metrics.")
    deadline_seconds: float = Field(description="After this time a request is given up.")
    processes: list[Process]


@router.get("/info", tags=["service"], summary="Versions, hashes, engines, limits, processes", responses=documented(MODEL_ERRORS))
def info(service: RunningService) -> Info:
    """For people, dashboards and bug reports. Read in a thread, since it asks the system about processes."""
    return Info(
        version=pocketqa.__version__,
        python=platform.python_version(),
        platform=f"{platform.system()}-{platform.machine()}",
        libraries=_versions(),
        models=[service.pair.teacher.info, service.pair.student.info],
        limits=limits(service.settings),
        shadow=service.settings.shadow,
        deadline_seconds=service.settings.deadline_seconds,
        processes=_processes(service.inference.workers(), service.shadow_processes()),
    )


def _processes(workers: list[dict[str, object]], shadows: list[dict[str, object]]) -> list[Process]:
    server = process_facts(os.getpid(), threading.active_count(), time.monotonic() - _BEGAN, 0, peak_rss())
    others = [
        {"kind": kind} | facts for kind, found in (("worker", workers), ("shadow", shadows)) for facts in found if facts["pid"] != server["pid"]
    ]
    return [Process.model_validate({"kind": "server"} | server), *map(Process.model_validate, others)]


@cache
def _versions() -> dict[str, str]:
    found = {}
    for library in _LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:  # engines are extras
            continue
    return found
