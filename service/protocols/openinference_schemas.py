"""What the Open Inference Protocol (version 2, REST) takes and gives here, named as its specification names it.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from pocketqa.types import MAX_WINDOW_TOKENS, SpanOptions, WindowOptions
from service.schemas import LONGEST_ANSWER_TOKENS, Strict, Text

OutputName = Literal["answer", "score", "start", "end", "source"]
Datatype = Literal["BYTES", "FP32", "INT64"]
OUTPUTS: dict[OutputName, Datatype] = {"answer": "BYTES", "score": "FP32", "start": "INT64", "end": "INT64", "source": "INT64"}

_QUESTIONS: JsonValue = {"name": "question", "shape": [1], "datatype": "BYTES", "data": ["Who designed the bridge?"]}
_CONTEXTS: JsonValue = {
    "name": "context", "shape": [1], "datatype": "BYTES",
    "data": ["The Kestrel Bridge was designed by Marguerite Oldcastle and opened in 1931."],
}  # fmt: skip

_ANSWERS: JsonValue = {"name": "answer", "shape": [1], "datatype": "BYTES", "data": ["Marguerite Oldcastle"]}

_METADATA: JsonValue = {
    "name": "student", "versions": ["0123456789ab"], "platform": "openvino_bf16",
    "inputs": [{"name": name, "datatype": "BYTES", "shape": [-1]} for name in ("question", "context")],
    "outputs": [{"name": name, "datatype": datatype, "shape": [-1]} for name, datatype in OUTPUTS.items()],
}  # fmt: skip

Shape = Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=8, fail_fast=True)]
# Extensions of other servers put their settings here; none of them is one of this service.
Parameters = Annotated[dict[str, JsonValue], Field(description="Extensions' settings. Data outside of the JSON document is not taken or given.")]


class InferInput(Strict):
    """A tensor of texts."""

    name: Literal["question", "context"]
    shape: Shape = Field(description="[n], the number of texts; [n, 1], as MLServer's client writes it, is the same.")
    datatype: Literal["BYTES"]
    data: Annotated[list[Text], Field(min_length=1, fail_fast=True)]
    parameters: Parameters | None = None


class InferOutput(Strict):
    """A tensor that is wanted."""

    name: OutputName
    parameters: Parameters | None = None


class InferParameters(Strict):
    """Options of the request, the same for every question."""

    top_k: Annotated[int, Field(ge=1, le=100)] = Field(
        default=SpanOptions().top_k,
        description="Answers of a question, best first: tensors have n x top_k elements, question by question. "
        "A row with fewer is filled up with source -1.",
    )
    max_answer_tokens: Annotated[int, Field(ge=1, le=LONGEST_ANSWER_TOKENS)] | None = Field(default=None, description="As in POST /v1/answer.")
    no_answer: bool | None = Field(default=None, description="As in POST /v1/answer.")
    max_tokens: Annotated[int, Field(ge=32, le=MAX_WINDOW_TOKENS)] = Field(default=WindowOptions().max_tokens, description="As in POST /v1/answer.")
    doc_stride: Annotated[int, Field(ge=0, lt=MAX_WINDOW_TOKENS)] | None = Field(default=None, description="As in POST /v1/answer.")
    content_type: str | None = Field(default=None, description="MLServer's client says it; it is not looked at.")
    binary_data_output: bool = Field(default=False, description="false; true is refused, since outputs are always JSON.")


class InferRequest(Strict):
    """Questions and passages as two tensors."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"id": "42", "inputs": [_QUESTIONS, _CONTEXTS], "outputs": [{"name": "answer"}]}]})

    id: str | None = Field(default=None, description="Comes back with the response.")
    model_name: str | None = Field(default=None, description="What KServe's client says once more; if it is there, the path's model.")
    parameters: InferParameters | None = None
    inputs: Annotated[list[InferInput], Field(max_length=8, fail_fast=True)] = Field(
        description="question [n] beside context [n]: each question on its passage. context [1]: all questions on one passage. "
        "question [1] beside context [m]: one search through all passages."
    )
    outputs: Annotated[list[InferOutput], Field(fail_fast=True)] | None = Field(
        default=None, description="Which tensors, in which order. Absent, null or empty: all."
    )


class TensorMetadata(BaseModel):
    """A tensor that a model takes or gives; -1 stands for any size."""

    name: str
    datatype: Datatype
    shape: list[int]


class OutputTensor(BaseModel):
    """One element an answer: its words, its score, its first code point in the passage, the one past its last, and which context it is from.

    No answer is the empty text.
    """

    name: OutputName
    datatype: Datatype
    shape: list[int]
    data: list[str | int | float]


class InferResponse(BaseModel):
    """The tensors that were asked for."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"model_name": "student", "model_version": "0123456789ab", "id": "42", "outputs": [_ANSWERS]}]}
    )

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[OutputTensor]


class ServerMetadata(BaseModel):
    """What answers."""

    name: str
    version: str
    extensions: list[str]


class ServerHealth(BaseModel):
    """The answer of a probe; both keys, since the specification's text names one and its servers the other."""

    live: Literal[True] = True
    ready: Literal[True] | None = None


class ModelList(BaseModel):
    """Names of the models."""

    models: list[str]


class ModelMetadata(BaseModel):
    """A model's tensors."""

    model_config = ConfigDict(json_schema_extra={"examples": [_METADATA]})

    name: str
    versions: list[str] = Field(description="The first twelve digits of the weights' sha256.")
    platform: str = Field(description="Engine and precision.")
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ModelReady(BaseModel):
    """A model answers."""

    name: str
    ready: Literal[True] = True
