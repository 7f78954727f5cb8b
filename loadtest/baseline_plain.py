"""Baseline A, the plain way done fairly: the question-answering pipeline of transformers in PyTorch behind a FastAPI endpoint.

    python -m loadtest.baseline_plain --model models/student --precision bf16

Inference mode (the pipeline sees to it), as many threads as there are cores, fused attention, one request in PyTorch at a time.
"""

from __future__ import annotations

import logging
import sys
import warnings
from typing import Any

import torch
import transformers

from loadtest.baseline_endpoint import parse, serve

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def main(argv: list[str]) -> int:
    """Serve until interrupted."""
    given = parse(argv, __doc__ or "", tuple(DTYPES))
    torch.set_num_threads(given.threads)
    transformers.logging.set_verbosity_error()  # of the devices it has found
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    # Any: the overloads of `pipeline` know no dtype for a folder that is given as text.
    make: Any = transformers.pipeline
    pipeline = make("question-answering", model=given.model, tokenizer=given.model, device="cpu", dtype=DTYPES[given.precision])

    def answer(question: str, context: str, parameters: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = pipeline(question=question, context=context, **parameters)
        return found

    version = f"{torch.__version__.partition('+')[0]}, transformers {transformers.__version__}"
    serve(answer, {"engine": "pytorch", "version": version, "precision": given.precision, "threads": given.threads}, given.host, given.port)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
