"""The one inference path for questions: encode, forward, decode.

The service puts a queue between the same three steps; evaluation and verification call them as they stand.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pocketqa import spans
from pocketqa.errors import FolderError, TextError
from pocketqa.features import Encoded, Tokenizer, make_batches
from pocketqa.folders import ModelFolder
from pocketqa.runtimes import open_runtime
from pocketqa.runtimes.base import Runtime
from pocketqa.types import NoAnswer, Request, Result, RuntimeInfo, SpanLogits, SpanOptions, StageTimings, WindowOptions

BATCH_TOKENS = 4096  # rows x length of one forward; larger batches no longer gain on the CPUs this was tried on


class Reader:
    """A tokenizer and a runtime that together answer questions.  Safe to share between threads, not between processes: it cannot be
    pickled, so that each process opens its own.

    >>> reader = Reader.open("models/student")                          # doctest: +SKIP
    >>> reader.answer("Who built it?", "The mill was built by Ada.").best.text   # doctest: +SKIP
    'Ada'
    """

    def __init__(self, tokenizer: Tokenizer, runtime: Runtime, name: str = "model", model_hash: str = "", no_answer: NoAnswer | None = None) -> None:
        self.tokenizer = tokenizer
        self.runtime = runtime
        self.name = name
        self.model_hash = model_hash
        self.no_answer = no_answer or NoAnswer()

    @classmethod
    def open(cls, folder: str | Path, engine: str = "auto", threads: int | None = None, precision: str | None = None) -> Reader:
        """A reader over a model folder made by `pocketqa package`.

        engine: "auto", "onnxruntime", "openvino" or "pytorch"; threads: None for all usable cores; precision: None for the engine's own.
        Raises FolderError for an incomplete or damaged folder, EngineError for an engine that is not there.
        """
        model = ModelFolder(Path(folder))
        try:
            f"{folder} {os.path.realpath(folder)}".encode()  # the libraries that open its files know no other paths
        except UnicodeEncodeError:
            found = " -> ".join(dict.fromkeys((ascii(str(folder)), ascii(os.path.realpath(folder)))))
            raise FolderError(f"Expected a path in UTF-8 to the model folder, found {found}. Rename what is not.") from None
        manifest = model.verify()
        runtime = open_runtime(model, engine=engine, precision=precision, threads=threads)
        return cls(Tokenizer(model.tokenizer), runtime, manifest.name, manifest.files[model.weights.name], manifest.no_answer)

    @property
    def info(self) -> RuntimeInfo:
        """Engine, version, precision and threads."""
        return self.runtime.info

    def encode(self, requests: Iterable[Request], window_options: WindowOptions | None = None) -> Encoded:
        """Requests to windows."""
        return self.tokenizer.encode(requests, window_options)

    def forward(self, encoded: Encoded, max_batch_tokens: int = BATCH_TOKENS) -> SpanLogits:
        """Logits (W, T) over all windows, T the longest window; computed in length-bucketed batches."""
        length = max((len(window) for window in encoded.windows), default=0)
        start = np.zeros((len(encoded.windows), length), dtype=np.float32)  # (W, T)
        end = np.zeros_like(start)  # (W, T)
        batches = make_batches(encoded.windows, max_batch_tokens, self.runtime.lengths, self.runtime.max_batch, self.tokenizer.pad_id)
        for batch, rows in batches:
            logits = self.runtime.forward(batch)
            width = min(length, logits.start.shape[1])
            start[rows, :width] = logits.start[:, :width]
            end[rows, :width] = logits.end[:, :width]
        return SpanLogits(start, end)

    def decode(self, encoded: Encoded, logits: SpanLogits, span_options: SpanOptions | None = None) -> list[Result]:
        """Answers of every request; only the decode time is filled in."""
        return spans.decode(encoded, logits, span_options, self.no_answer)

    def answer(
        self,
        question: str,
        context: str | Sequence[str],
        *,
        window_options: WindowOptions | None = None,
        span_options: SpanOptions | None = None,
    ) -> Result:
        """Answer one question from one passage or a list of passages.  Raises TextError for anything else."""
        given: Any = context
        contexts = tuple(given) if isinstance(given, Iterable) and not isinstance(given, str | bytes) else (given,)
        return self.answer_many([Request(question, contexts)], window_options=window_options, span_options=span_options)[0]

    def answer_many(
        self, requests: Iterable[Request], *, window_options: WindowOptions | None = None, span_options: SpanOptions | None = None
    ) -> list[Result]:
        """Answer several requests together.  Tokenise and forward times are those of the whole call, shared out by windows."""
        requests = tuple(requests)
        if not requests:
            raise TextError("Expected at least one question, found none.")
        encoded = self.encode(requests, window_options)
        began = time.perf_counter()
        logits = self.forward(encoded)
        forward = time.perf_counter() - began
        results = self.decode(encoded, logits, span_options)
        shares = [result.windows / len(encoded.windows) for result in results]
        return [
            replace(result, timings=StageTimings(tokenise=encoded.seconds * share, forward=forward * share, decode=result.timings.decode))
            for result, share in zip(results, shares, strict=True)
        ]
