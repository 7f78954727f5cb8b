"""Baseline B: the endpoint of baseline A over this project's own reader in OpenVINO, at batch 1.

    python -m loadtest.baseline_openvino --model models/student --precision bf16

Tokenising, engine and decoding are those of the service; what it lacks is the service: batches across requests, its queue, its processes.
"""

from __future__ import annotations

import sys
from typing import Any

from loadtest.baseline_endpoint import parse, serve
from pocketqa.reader import Reader
from pocketqa.types import Request, SpanOptions, WindowOptions

ONE_ROW = 1  # tokens of a batch: no two windows fit together


def main(argv: list[str]) -> int:
    """Serve until interrupted."""
    given = parse(argv, __doc__ or "", ("bf16", "fp32"))
    reader = Reader.open(given.model, engine="openvino", precision=given.precision, threads=given.threads)

    def answer(question: str, context: str, parameters: dict[str, Any]) -> dict[str, Any]:
        windows = WindowOptions(parameters.get("max_seq_len", 384), parameters.get("doc_stride", 128), parameters.get("max_question_len", 64))
        encoded = reader.encode([Request(question, (context,))], windows)
        logits = reader.forward(encoded, ONE_ROW)
        best = reader.decode(encoded, logits, SpanOptions(max_answer_tokens=parameters.get("max_answer_len", 30)))[0].best
        return {"score": best.score, "start": best.start, "end": best.end, "answer": best.text}

    info = reader.info
    serve(
        answer,
        {"engine": info.engine, "version": info.version, "precision": info.precision, "threads": info.threads},
        given.host,
        given.port,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
