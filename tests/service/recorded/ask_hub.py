"""What a user of huggingface_hub writes, case by case.  Runs in the client's own environment: python ask_hub.py ADDRESS [CASE].

Prints one JSON object: for each case what came back, as the client made it.  Written for the client alone, so nothing of PocketQA is imported.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from huggingface_hub import InferenceClient, __version__

QUESTION, CONTEXT = "who built it?", "The mill was built by Ada Bell in Rome."
OPTIONS: dict[str, Any] = {
    "align_to_words": False, "doc_stride": 16, "handle_impossible_answer": True, "max_answer_len": 8, "max_question_len": 20, "max_seq_len": 64,
    "top_k": 1,
}  # fmt: skip
# path, question, context, options of the call, options of the client
CASES: dict[str, tuple[str, str, str, dict[str, Any], dict[str, Any]]] = {
    "plain": ("/", QUESTION, CONTEXT, {}, {}),
    "options": ("/predict", QUESTION, CONTEXT, OPTIONS, {}),
    "several": ("/", QUESTION, "Bell and Bell", {"top_k": 3}, {}),
    "unicode": ("/", "who? 😀", "😀 שלום Bell", {}, {}),
    "named": ("/models/teacher", QUESTION, CONTEXT, {}, {}),
    "token": ("/models/student", QUESTION, CONTEXT, {}, {"token": "a-key-for-a-test"}),
    "refused": ("/", QUESTION, CONTEXT, {"top_k": 1000}, {}),
}


def ask(address: str, case: str) -> Any:
    """The answer as plain values, or the error that the user sees."""
    if case == "health":
        return InferenceClient(model=address, provider="hf-inference").health_check()
    path, question, context, options, client = CASES[case]
    try:
        found = InferenceClient(model=address + path, **client).question_answering(question=question, context=context, **options)
    except Exception as error:
        return {"error": type(error).__name__, "message": str(error)}
    elements = found if isinstance(found, list) else [found]
    plain = [{"answer": each.answer, "score": each.score, "start": each.start, "end": each.end} for each in elements]
    return plain if isinstance(found, list) else plain[0]


if __name__ == "__main__":
    wanted = sys.argv[2:] or [*CASES, "health"]
    print(json.dumps({"version": __version__, "cases": {case: ask(sys.argv[1], case) for case in wanted}}))
