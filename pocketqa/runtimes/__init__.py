"""Inference engines behind one small interface (runtimes.base.Runtime), and the choice among them.

    onnxruntime   fp32 or int8; part of the base install
    openvino      bf16 where the processor computes it, else fp32; int8; extra `openvino`
    pytorch       fp32 or bf16; extra `train`; the reference

int8 needs a form of the model folder (`pocketqa.runtimes.forms`), made by `pocketqa package MODEL --form NAME`.
No engine is imported before one is opened.
"""

from __future__ import annotations

import importlib.util
import logging

from pocketqa.errors import EngineError, MissingExtra, OptionsError
from pocketqa.folders import ModelFolder
from pocketqa.runtimes.base import Runtime
from pocketqa.runtimes.cores import usable_cores
from pocketqa.runtimes.forms import INT8, find_form, has_form

__all__ = ["ENGINES", "PRECISIONS", "Runtime", "available_engines", "open_runtime", "usable_cores"]

AUTO = "auto"
MOST_THREADS = 4096  # the engines take any number, and fail in words of their own
ENGINES = {"onnxruntime": ("onnxruntime",), "openvino": ("openvino",), "pytorch": ("torch", "transformers")}  # engine -> packages it needs
PRECISIONS = {"onnxruntime": ("fp32", INT8), "openvino": ("fp32", "bf16", INT8), "pytorch": ("fp32", "bf16"), AUTO: ("fp32", "bf16", INT8)}

log = logging.getLogger("pocketqa")


def available_engines() -> tuple[str, ...]:
    """The engines whose packages are installed."""
    return tuple(engine for engine, packages in ENGINES.items() if all(map(_is_installed, packages)))


def open_runtime(folder: ModelFolder, engine: str = AUTO, precision: str | None = None, threads: int | None = None) -> Runtime:
    """Open a model folder with an engine.

    engine: "auto" takes openvino where it is installed and the folder holds its int8 form, or the processor computes bf16; else onnxruntime, in int8
        where the folder holds that form, and logs why.
    precision: "fp32", "bf16" or "int8"; None takes the engine's own.  threads: None takes all usable cores.
    Raises OptionsError for settings that contradict, EngineError and MissingExtra for engines that are absent or fail, FolderError for the folder.
    """
    _check_options(engine, precision, threads)
    if engine == AUTO:
        return _open_auto(folder, precision, threads)
    return _open(folder, engine, precision, threads)


def _is_installed(package: str) -> bool:
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None  # a mere folder of that name in the working directory can be imported too, and has no origin


def _check_options(engine: str, precision: str | None, threads: int | None) -> None:
    if engine not in PRECISIONS:
        raise EngineError(f"Expected an engine out of {', '.join((AUTO, *ENGINES))}, found {engine!r}.")
    problems = []
    if precision is not None and precision not in PRECISIONS[engine]:
        problems.append(f"the engine {engine} computes in {' or '.join(PRECISIONS[engine])}, not in {precision!r}")
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        problems.append(f"threads must be 1 to {MOST_THREADS:,}, found {threads}")
    if problems:
        raise OptionsError("; ".join(problems))


def _open(folder: ModelFolder, engine: str, precision: str | None, threads: int | None) -> Runtime:
    form = find_form(folder, engine) if precision == INT8 else None
    if engine == "openvino":
        from pocketqa.runtimes.openvino import OpenVinoRuntime

        return OpenVinoRuntime(folder, None if form else precision, threads, form)
    if engine == "pytorch":
        from pocketqa.runtimes.pytorch import PyTorchRuntime

        return PyTorchRuntime.open(folder, precision, threads)
    from pocketqa.runtimes.onnx import OnnxRuntime

    return OnnxRuntime(folder, threads, form)


def _open_auto(folder: ModelFolder, precision: str | None, threads: int | None) -> Runtime:
    if precision == "fp32":
        return _open(folder, "onnxruntime", precision, threads)
    forms = [] if precision == "bf16" else [engine for engine in ("openvino", "onnxruntime") if has_form(folder, engine)]
    try:
        reason = _why_not_openvino(bf16="openvino" not in forms)
        level = logging.INFO
        if reason is None and ("openvino" in forms or precision != INT8 or not forms):
            return _open(folder, "openvino", INT8 if "openvino" in forms or precision == INT8 else "bf16", threads)
    except EngineError as error:
        reason, level = str(error), logging.WARNING
    if precision == "bf16":
        raise EngineError(f"No installed engine computes in bf16 here: {reason}. Leave the precision out, or ask for fp32.")
    quantised = precision == INT8 or "onnxruntime" in forms
    log.log(level, "%s: using onnxruntime in %s, because %s", folder.path, INT8 if quantised else "fp32", reason or "it has no form for openvino")
    return _open(folder, "onnxruntime", INT8 if quantised else None, threads)


def _why_not_openvino(bf16: bool) -> str | None:
    """Why "auto" does not take OpenVINO on this machine, or None.  bf16: wanted for that.  Raises EngineError where it is installed and broken."""
    if "openvino" not in available_engines():
        return "the extra 'openvino' is not installed"
    from pocketqa.runtimes.openvino import computes_bf16

    try:
        return None if computes_bf16() or not bf16 else "this processor does not compute in bf16"
    except MissingExtra as error:
        return str(error)
