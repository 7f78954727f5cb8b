"""The program of a real worker process over the tiny pair, which some words upset: python -m tests.service.engine.tiny_worker FD."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time

from pocketqa.errors import EngineError
from pocketqa.features import Tokenizer
from pocketqa.reader import Reader
from pocketqa.types import Batch, NoAnswer, SpanLogits
from service.engine.worker import serve
from service.models import Pair, Served
from service.settings import Settings
from tests.service.tiny_pair import WordRuntime

MODULE = "tests.service.engine.tiny_worker"
POISON, DEADLY, SLOW = "x", "rome", "o"  # words of the tiny vocabulary
SLOW_SECONDS = 1.0


class Moody(WordRuntime):
    """A WordRuntime that fails on one word, kills its process on another and dawdles over a third."""

    def __init__(self, tokenizer: Tokenizer, word: str) -> None:
        self._upsets = {name: tokenizer._fast.token_to_id(name) for name in (POISON, DEADLY, SLOW)}
        super().__init__(tokenizer._fast.token_to_id(word), tokenizer.cls_id)

    def forward(self, batch: Batch) -> SpanLogits:
        found = {name for name, token in self._upsets.items() if (batch.ids == token).any()}
        if POISON in found:
            raise EngineError("This word is poison.")
        if DEADLY in found:
            os.kill(os.getpid(), signal.SIGKILL)
        if SLOW in found:
            time.sleep(SLOW_SECONDS)
        return super().forward(batch)


def open_tiny(settings: Settings) -> Pair:
    """The teacher answers "ada", the student "bell"; the tokenizer is that of the student's folder."""
    tokenizer = Tokenizer(settings.student / "tokenizer.json")
    readers = {role: Reader(tokenizer, Moody(tokenizer, word), role, role * 8, NoAnswer(True, 0.0)) for role, word in WORDS.items()}
    return Pair(Served("teacher", readers["teacher"]), Served("student", readers["student"]))


WORDS = {"teacher": "ada", "student": "bell"}

if __name__ == "__main__":
    sys.exit(serve(socket.socket(fileno=int(sys.argv[1])), open_tiny))
