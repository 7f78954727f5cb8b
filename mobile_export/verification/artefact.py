"""The engines that run a bundle's model, and what can be read off it."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from mobile_export.bundle import TRACE, Bundle, open_bundle
from mobile_export.targets import EXECUTORCH, NETWORK, PROGRAM
from pocketqa.errors import CorruptFolder, OptionsError
from pocketqa.features import Tokenizer
from pocketqa.reader import Reader
from pocketqa.runtimes.base import Runtime
from pocketqa.types import JSON, Batch

if TYPE_CHECKING:
    from mobile_export.interpreter.mlprogram import Program

ENGINES = ("interpreter", "coreml", "executorch")
NOT_CHECKED_NETWORK = ("layers: the weights that the neuralnetwork stores were run in the ML program that it was translated from",)
NOT_CHECKED_EXECUTORCH = ("phones: XNNPACK ran on this machine's processor, whose instructions are others",)


def engine_for(bundle: Bundle, engine: str | None = None) -> str:
    """The engine asked for, or the one that runs the bundle's format on any machine.  Raises OptionsError where it cannot run the format."""
    own = "executorch" if bundle.format == EXECUTORCH.format else "interpreter"
    if engine is None or engine == own:
        return own
    if engine not in ENGINES:
        raise OptionsError(f"Expected an engine out of {', '.join(ENGINES)}, found {engine!r}.")
    if "executorch" in (engine, own):
        raise OptionsError(f"{bundle.path} is of format {bundle.format}, which the engine {engine} does not run. Leave --engine out to take {own}.")
    return engine


def runtime_of(bundle: Bundle, engine: str | None = None, threads: int | None = None, unit: str = "all") -> Runtime:
    """The bundle's model in an engine of this process.

    Raises OptionsError, EngineError where the engine is not there or does not know an operation, MissingExtra, FolderError.
    """
    engine = engine_for(bundle, engine)
    if engine == "coreml":
        from mobile_export.formats.coreml_runtime import CoreMLRuntime

        return CoreMLRuntime.open(bundle.package, bundle.lengths, bundle.scheme, unit)
    if engine == "executorch":
        from mobile_export.formats.executorch import ExecuTorchRuntime

        return ExecuTorchRuntime(bundle.package, threads)
    from mobile_export.interpreter.interpreter import InterpreterRuntime

    return InterpreterRuntime(program_of(bundle), threads)


def reader_of(bundle: Bundle, threads: int | None = None, engine: str | None = None, unit: str = "all") -> Reader:
    """A reader over a bundle, in this process; its `model_hash` is the checkpoint's.  Raises what `runtime_of` raises."""
    return reader_over(bundle, runtime_of(bundle, engine, threads, unit))


def reader_over(bundle: Bundle, runtime: Runtime) -> Reader:
    """A reader with the bundle's vocabulary over any runtime."""
    return Reader(Tokenizer(bundle.tokenizer), runtime, bundle.name, bundle.model_hash, bundle.no_answer)


def program_of(bundle: Bundle) -> Program:
    """The ML program of a Core ML bundle; of the older `neuralnetwork` type, the program it was made from with the weights that it stores."""
    if bundle.format == PROGRAM.format:
        from mobile_export.interpreter.mlprogram import open_program

        return open_program(bundle.package)
    from mobile_export.formats.neuralnetwork import program_of as decoded_program

    return decoded_program(bundle)


class Artefact:
    """What the child process of `isolated.py` holds: an opened bundle and its engine."""

    def __init__(self, path: Path, engine: str | None = None, threads: int | None = None, unit: str = "all") -> None:
        """Open the bundle, every file compared with its sha256.  Raises what `open_bundle` and `runtime_of` raise."""
        self.bundle = open_bundle(path)
        self.engine = engine_for(self.bundle, engine)
        self.runtime = runtime_of(self.bundle, self.engine, threads, unit)

    @functools.cached_property
    def program(self) -> Program | None:
        """The ML program, None for ExecuTorch."""
        return None if self.bundle.format == EXECUTORCH.format else program_of(self.bundle)

    def facts(self) -> JSON:
        """What the parent asks about first: the engine ("info", "lengths", "max_batch", "not_checked", hash of the interpreter's "code"), operations
        by type, hazards and warnings.
        """
        runtime = self.runtime
        facts: JSON = {"info": asdict(runtime.info), "lengths": runtime.lengths, "max_batch": runtime.max_batch, "not_checked": self._not_checked()}
        if self.program is None:
            return facts | {"operations": {}, "hazards": [], "warnings": [], "code": ""}
        from mobile_export.verification.hazards import find_hazards, find_warnings

        return facts | {
            "operations": self.program.operation_types(),
            "hazards": find_hazards(self.program, self.bundle.target.specification),
            "warnings": find_warnings(self.program, self.bundle.target),
            "code": code_hash(),
        }

    def watch(self, batch: Batch) -> JSON:
        """Operation -> its "type", and how many values "non_finite" and "overflows" it had on a batch, and the "largest" before rounding to float16.

        Empty for ExecuTorch, which shows nothing of its operations.
        """
        if self.program is None:
            return {}
        from mobile_export.interpreter.interpreter import Interpreter

        interpreter = Interpreter(self.program, watch=True)
        interpreter.run(batch.ids)
        return {name: asdict(found) for name, found in interpreter.statistics.items()}

    def trace(self) -> JSON:
        """ "findings": what each operation computes otherwise than when the trace was recorded; None where the bundle holds no trace."""
        file = self.bundle.path / TRACE
        if self.program is None or TRACE not in self.bundle.manifest.files:
            return {"findings": None}
        from mobile_export.interpreter.trace import compare_trace

        try:
            recorded = json.loads(file.read_bytes())
        except ValueError as error:
            raise CorruptFolder(f"Expected a trace in JSON at {file}, found: {error}. Make the bundle again with: pocketqa export") from None
        return {"findings": [asdict(finding) for finding in compare_trace(self.program, recorded)]}

    def _not_checked(self) -> Sequence[str]:
        if self.engine == "coreml":
            from mobile_export.formats.coreml_runtime import NOT_CHECKED

            return NOT_CHECKED
        if self.engine == "executorch":
            return NOT_CHECKED_EXECUTORCH
        from mobile_export.interpreter.interpreter import NOT_CHECKED as OF_INTERPRETER

        return (*OF_INTERPRETER, *(NOT_CHECKED_NETWORK if self.bundle.format == NETWORK.format else ()))


def code_hash() -> str:
    """sha256 of the interpreter's source: logits that another version of it has left on disk are not taken for this one's."""
    from mobile_export.interpreter import __file__ as package

    return hashlib.sha256(b"\0".join(source.read_bytes() for source in sorted(Path(package).parent.glob("*.py")))).hexdigest()
