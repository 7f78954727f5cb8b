"""PyTorch on the CPU, in fp32 or bf16: the reference that the other engines are compared with.  Needs the extra `train`."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import numpy as np

from pocketqa.errors import CorruptFolder, EngineError, IncompleteFolder, MissingExtra
from pocketqa.folders import ModelFolder
from pocketqa.runtimes.cores import usable_cores
from pocketqa.runtimes.loading import feed, plain
from pocketqa.types import Batch, RuntimeInfo, SpanLogits

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


class PyTorchRuntime:
    """A question-answering model of transformers, from a folder or already in memory.  May be called from several threads."""

    lengths: tuple[int, ...] | None = None
    max_batch: int | None = None

    def __init__(self, model: PreTrainedModel, precision: str = "fp32") -> None:
        """Take a model as it stands; for bf16, weights in fp32 are left alone and the computation runs under autocast.

        A model in training mode is put into evaluation mode for each call, so that a training loop may hand in its own (from one thread).
        """
        import torch

        self._model = model
        self._names = [name for name in ("input_ids", "attention_mask", "token_type_ids") if name in inspect.signature(model.forward).parameters]
        self._autocast = precision == "bf16" and model.dtype != torch.bfloat16
        self.info = RuntimeInfo("pytorch", torch.__version__, precision, torch.get_num_threads())

    @classmethod
    def open(cls, folder: ModelFolder, precision: str | None = None, threads: int | None = None) -> PyTorchRuntime:
        """Load a model folder or a training checkpoint.  Raises MissingExtra, IncompleteFolder, CorruptFolder.

        threads is a setting of the whole process in PyTorch; None leaves it, unless it exceeds the usable cores.
        """
        try:
            import torch
            from transformers import AutoModelForQuestionAnswering
        except ImportError as error:
            raise MissingExtra(error.name or "torch", "train", "The engine 'pytorch'") from None
        for path in (folder.config, folder.weights):
            if not path.is_file():
                raise IncompleteFolder(f"Expected {path}, found nothing there. A model folder or checkpoint holds config.json and model.safetensors.")
        torch.set_num_threads(threads or min(torch.get_num_threads(), usable_cores()))
        try:
            model = AutoModelForQuestionAnswering.from_pretrained(folder.path, local_files_only=True, use_safetensors=True)
        except Exception as error:  # OSError, ValueError, RuntimeError, SafetensorError
            raise CorruptFolder(f"PyTorch cannot load {folder.path}: {plain(error)}") from error
        precision = precision or "fp32"
        model.to(torch.bfloat16 if precision == "bf16" else torch.float32)  # from_pretrained leaves it in evaluation mode
        return cls(model, precision)

    def forward(self, batch: Batch) -> SpanLogits:
        """Logits (B, T).  Raises EngineError."""
        import torch

        device = self._model.device
        inputs = {name: torch.from_numpy(values).to(device) for name, values in feed(batch, self._names).items()}  # (B, T)
        if "token_type_ids" in inputs:  # of a model of single sentences the table has one row
            inputs["token_type_ids"].clamp_(max=self._model.config.type_vocab_size - 1)
        if training := self._model.training:
            self._model.eval()
        try:
            with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=self._autocast):
                output = self._model(**inputs, return_dict=True)
        except (RuntimeError, IndexError, ValueError) as error:
            raise EngineError(f"PyTorch cannot compute a batch of {batch.shape[0]} x {batch.shape[1]}: {plain(error)}") from error
        finally:
            if training:
                self._model.train()
        return SpanLogits(_numpy(output.start_logits), _numpy(output.end_logits))


def _numpy(logits: torch.Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    values: np.ndarray[tuple[int, ...], np.dtype[np.float32]] = logits.float().cpu().numpy()  # (B, T)
    return values
