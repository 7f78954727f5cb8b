"""Import the engines so that they report to nobody.

Both engines bring telemetry that is on by default and starts with the import:

- ONNX Runtime 1.29 and later, in its official builds, writes a device identifier and a database below the cache folder and sends events to Microsoft.
  ORT_DISABLE_TELEMETRY=1 in the environment before the import keeps all of it from being created (its Privacy.md).
- OpenVINO imports the package openvino-telemetry, which writes an identifier into the home folder and reports the import to Google Analytics.  It is
  hidden for the time of the import; OpenVINO then takes the silent stub that it brings for installs without that package.

A program that has imported an engine itself, or has set ORT_DISABLE_TELEMETRY itself, has decided for itself.
"""

from __future__ import annotations

import functools
import os
import sys
from typing import Any

from pocketqa.errors import EngineError, MissingExtra

ONNXRUNTIME_SWITCH = "ORT_DISABLE_TELEMETRY"
OPENVINO_TELEMETRY = "openvino_telemetry"


@functools.cache
def silent_onnxruntime() -> Any:
    """The module `onnxruntime`, without telemetry.  Raises EngineError where it does not load."""
    os.environ.setdefault(ONNXRUNTIME_SWITCH, "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineError(f"ONNX Runtime, which the base install brings, does not load: {error}. Install it with: pip install onnxruntime") from error
    return onnxruntime


@functools.cache
def silent_openvino() -> Any:
    """The module `openvino`, without telemetry.  Raises MissingExtra, or EngineError where its libraries do not load."""
    hide = "openvino" not in sys.modules and OPENVINO_TELEMETRY not in sys.modules
    if hide:
        sys.modules[OPENVINO_TELEMETRY] = None  # type: ignore[assignment]  # Python's way to say: not installed
    try:
        import openvino
    except ModuleNotFoundError as error:
        if error.name != "openvino":
            raise EngineError(f"OpenVINO is installed but incomplete: {error}") from error
        raise MissingExtra("openvino", "openvino", "The engine 'openvino'") from None
    except ImportError as error:
        raise EngineError(f"OpenVINO is installed but does not load on this machine: {error}") from error
    finally:
        if hide:
            del sys.modules[OPENVINO_TELEMETRY]
    return openvino
