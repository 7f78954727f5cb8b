"""The memory of a worker on OpenVINO, which prepares itself for each new shape of batch: it stays bounded however many come."""

from __future__ import annotations

import asyncio
import platform
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from service.engine.lanes import resident
from service.engine.process import Worker
from service.engine.worker import filler, opening_document
from service.settings import Settings
from tests.packaged import model_folder
from tests.service.engine.tiny_worker import MODULE

MEBIBYTE = 1 << 20


async def memory_after(worker: Worker, shapes: Iterable[tuple[int, int]]) -> int:
    """Bytes that the worker holds once the student has computed a batch of each shape; 0 where the system does not tell."""
    for rows, length in shapes:
        await worker.forward("student", filler(rows, length))
    return resident(worker.process.pid) or 0


@pytest.mark.full
@pytest.mark.timeout(900)
def test_new_shapes_do_not_make_a_worker_grow_for_ever() -> None:
    async def scene() -> None:
        settings = Settings(teacher=model_folder("bert"), student=model_folder("distilbert"), engine="openvino")
        worker = await Worker.start(opening_document(settings, 1, 0.5), 600)
        try:
            await worker.ready
            shapes = [(rows, length) for rows in range(1, 21) for length in range(16, 48, 2)]
            before = await memory_after(worker, shapes[:240])
            grown = await memory_after(worker, shapes[240:]) - before
        finally:
            await worker.end()
        # OpenVINO would keep half a MiB for each of the last 80, even of so small a model.
        assert grown < 15 * MEBIBYTE

    asyncio.run(scene())


def asks_for_huge_pages(pid: int) -> bool:
    """Whether any memory of the process is marked for huge pages."""
    mappings = Path(f"/proc/{pid}/smaps")
    return mappings.exists() and any(line.startswith("VmFlags:") and " hg" in line for line in mappings.read_text("utf-8").splitlines())


def can_ask_for_huge_pages() -> bool:
    """Whether this system has them for who asks, and an allocator that does."""
    mode = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    library, version = platform.libc_ver()
    return mode.exists() and "[madvise]" in mode.read_text("utf-8") and library == "glibc" and tuple(map(int, version.split("."))) >= (2, 35)


def test_a_worker_asks_for_huge_pages_unless_told_how_to_allocate(tiny_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    async def asked() -> bool:
        worker = await Worker.start(opening_document(tiny_settings, 1, 0.5), 60, MODULE)
        try:
            await worker.ready
            return asks_for_huge_pages(worker.process.pid)
        finally:
            await worker.end()

    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    assert asyncio.run(asked()) == can_ask_for_huge_pages()
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0")
    assert not asyncio.run(asked())


def test_a_worker_has_its_pages_left_apart(tiny_settings: Settings) -> None:
    async def scene() -> None:
        worker = await Worker.start(opening_document(tiny_settings, 1, 0.5), 60, MODULE)
        try:
            await worker.ready
            if sys.platform == "linux":  # no other system joins pages
                assert "\nTHP_enabled:\t0\n" in Path(f"/proc/{worker.process.pid}/status").read_text("utf-8")
        finally:
            await worker.end()

    asyncio.run(scene())
