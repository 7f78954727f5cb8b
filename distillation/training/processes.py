"""One process or several: who this process is, and sums over all of them.  A thin layer over accelerate's PartialState.

    accelerate launch --multi_gpu --num_processes 8 -m pocketqa pretrain ...       eight GPUs (torchrun --nproc-per-node 8 does the same)
    torchrun --nproc-per-node 2 -m pocketqa pretrain ...                           two processes on a CPU
    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 -m pocketqa pretrain ...       on each of two machines

Without a launcher there is one process, and every function here is as good as free.  (`accelerate launch --cpu` starts one process too, unless it is
given MPI's list of hosts.)  Only the main process (rank 0) writes files and prints; all machines must see data, caches and OUT under the same paths.
"""

from __future__ import annotations

import atexit
import functools
import os
import signal
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from types import FrameType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate.state import PartialState  # type: ignore[import-untyped]
from torch import Tensor, nn

# The others wait while the main process tokenises a corpus, scores or saves.
PATIENCE = timedelta(hours=12)
BUCKET = 1 << 24  # elements summed in one message: 64 MB

T = TypeVar("T")


@functools.cache
def state() -> PartialState:
    """accelerate's view of this process; joins the others at the first call.  Without a GPU, or with ACCELERATE_USE_CPU, the backend is gloo."""
    asked = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    found = PartialState(cpu=asked or not torch.cuda.is_available(), **({"timeout": PATIENCE} if "LOCAL_RANK" in os.environ else {}))
    atexit.register(_leave)
    return found


def rank() -> int:
    """Number of this process, from 0."""
    return int(state().process_index)


def world() -> int:
    """Number of processes."""
    return int(state().num_processes)


def device() -> torch.device:
    """Where this process computes: its GPU, or the CPU."""
    return torch.device(state().device)


def is_main() -> bool:
    """Whether this process writes and prints."""
    return rank() == 0


def wait() -> None:
    """Go on once every process has come here."""
    state().wait_for_everyone()


def say(line: str) -> None:
    """Print a line to stderr, once for all processes."""
    if is_main():
        print(line, file=sys.stderr, flush=True)


def from_main(value: T) -> T:
    """The main process's value, in every process."""
    if world() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, device=device())
    return box[0]


def tensors_from_main(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The main process's tensors, by name, in every process; the others may give none."""
    if world() == 1:
        return dict(tensors)
    forms = from_main([(name, tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()])
    received = {}
    for name, shape, dtype in forms:
        tensor = tensors[name].to(device()).contiguous() if is_main() else torch.empty(shape, dtype=dtype, device=device())
        dist.broadcast(tensor, src=0)
        received[name] = tensor
    return received


def add(values: Mapping[str, float]) -> dict[str, float]:
    """Sums by name over all processes, in the order of their ranks, so that all get the same bits.  A name may be missing in some of them."""
    if world() == 1:
        return dict(values)
    everyone: list[Mapping[str, float]] = [{}] * world()
    dist.all_gather_object(everyone, dict(values))
    return add_up(everyone)


def add_up(several: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Sums by name."""
    sums: dict[str, float] = {}
    for values in several:
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + value
    return sums


def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace each gradient by the sum over all processes.  A parameter that got none anywhere keeps none, as with one process."""
    if world() == 1:
        return
    touched = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.int32, device=device())
    dist.all_reduce(touched, op=dist.ReduceOp.MAX)
    bucket: list[Tensor] = []
    for parameter, used in zip(parameters, touched.tolist(), strict=True):
        if not used:
            continue
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        if bucket and sum(grad.numel() for grad in bucket) + parameter.numel() > BUCKET:
            _sum_bucket(bucket)
            bucket = []
        bucket.append(parameter.grad)
    if bucket:
        _sum_bucket(bucket)


class StopSignal:
    """Turns SIGTERM and SIGINT into a flag for the duration of a run.

    With one process a second Ctrl-C acts as usual.  A second SIGTERM changes nothing, nor does any other under a launcher: who stops a group of
    processes passes on what they got themselves, and what is being saved then is not to be cut short.
    """

    def __init__(self) -> None:
        self.asked = False
        self._old: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._old[number] = signal.signal(number, self._note)
            except ValueError:  # not the main thread: the caller owns the signals
                return self
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        if world() == 1 and number == signal.SIGINT:
            signal.signal(number, self._old[number])

    def __exit__(self, *details: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)


def _sum_bucket(gradients: Sequence[Tensor]) -> None:
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def _leave() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
