"""What a user of an Open Inference Protocol client writes.  Runs in the client's own environment: python ask_open.py ADDRESS triton|kserve.

Prints the answers as one JSON list.  Written for the clients alone, so nothing of PocketQA is imported.
"""

from __future__ import annotations

import asyncio
import json
import sys

QUESTIONS, CONTEXTS = ["who built it?", "who? 😀"], ["The mill was built by Ada Bell in Rome.", "😀 שלום Bell"]


def ask_triton(address: str) -> list[str]:
    """NVIDIA's client, with JSON in place of its binary extension."""
    import numpy as np
    import tritonclient.http as triton  # type: ignore[import-not-found]

    client = triton.InferenceServerClient(address.removeprefix("http://"))
    inputs = []
    for name, texts in (("question", QUESTIONS), ("context", CONTEXTS)):
        inputs.append(triton.InferInput(name, [len(texts)], "BYTES"))
        inputs[-1].set_data_from_numpy(np.array(texts, dtype=np.object_), binary_data=False)
    outputs = [triton.InferRequestedOutput("answer", binary_data=False)]
    return list(client.infer("student", inputs, outputs=outputs, request_id="42").as_numpy("answer"))


def ask_kserve(address: str) -> list[str]:
    """KServe's client."""
    from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig  # type: ignore[import-not-found]

    inputs = [InferInput(name, [len(texts)], "BYTES", data=texts) for name, texts in (("question", QUESTIONS), ("context", CONTEXTS))]
    client = InferenceRESTClient(config=RESTConfig(protocol="v2", retries=0))
    request = InferRequest(model_name="student", request_id="42", infer_inputs=inputs)
    response = asyncio.run(client.infer(address, request, model_name="student"))
    return list(next(output.data for output in response.outputs if output.name == "answer"))


if __name__ == "__main__":
    print(json.dumps({"triton": ask_triton, "kserve": ask_kserve}[sys.argv[2]](sys.argv[1])))
