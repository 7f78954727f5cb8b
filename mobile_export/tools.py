"""What the extra `export` brings, coremltools above all: imported and run without its chatter, or an error that says what to install."""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import platform
import sys
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from pocketqa.errors import EngineError, MissingExtra, PocketQAError

BELOW_3_14 = ("coremltools", "executorch", "nncf", "onnx")  # which the extra export brings on these Pythons alone (pyproject.toml)


def check_installed(purpose: str, *packages: str) -> None:
    """Raise what `missing` makes for the first of the packages that is not installed."""
    for package in packages:
        if find_spec(package) is None:
            raise missing(package, purpose)


def missing(package: str, purpose: str) -> PocketQAError:
    """MissingExtra, which says what to install; EngineError where that would bring nothing."""
    if package in BELOW_3_14 and sys.version_info >= (3, 14):
        found = ".".join(map(str, sys.version_info[:2]))
        return EngineError(
            f"Expected Python 3.11, 3.12 or 3.13, found {found}, for which pocketqa[export] brings no {package}. Run this command with one of those."
        )
    if package == "coremltools" and sys.platform != "darwin" and platform.machine() != "x86_64":
        return EngineError(
            f"Expected macOS or an x86-64 processor, which coremltools has releases for, found {platform.system()} on {platform.machine()}. "
            "Run this command on one of those, or export for executorch, which does without it."
        )
    return MissingExtra(package, "export", purpose)


def import_coremltools() -> Any:
    """The module.  Raises EngineError on Pythons and systems it has no libraries for, MissingExtra where it is not installed."""
    purpose = "reading or writing Core ML packages"
    if sys.version_info >= (3, 14):  # an install from source is of no use
        raise missing("coremltools", purpose)
    if (loaded := sys.modules.get("coremltools")) is not None:
        return loaded  # at once: `quiet` collects garbage, which takes a good part of a second beside torch
    with quiet():
        try:
            import coremltools
        except ImportError as error:
            raise missing("coremltools", purpose) from error
    return coremltools


def check_can_write() -> None:
    """Raise EngineError where coremltools lacks the native library that writes weight files (https://github.com/apple/coremltools/issues/2361)."""
    import_coremltools()
    try:
        import coremltools.libmilstoragepython  # noqa: F401  (its presence is the question)
    except ImportError as error:
        raise EngineError(
            "Expected coremltools with its native libraries, which write weight files, found it without them. "
            f"Install a wheel of it with: pip install --force-reinstall --only-binary :all: coremltools ({error})"
        ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence what coremltools and what it imports print while they work: log lines, progress bars, and warnings about their own use of torch and
    temporary folders.

    Its notes do not concern the caller: versions of torch it was not tested with (`checks.py` and `hazards.py` test each export instead), and the
    parts of Core ML that only a Mac has.  torch deprecates `jit.trace`, which remains the front end that coremltools knows best.
    """
    disabled = logging.root.manager.disable
    logging.disable(max(disabled, logging.WARNING))  # handlers that hold the standard error of before are silent too
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
            gc.collect()  # temporary folders of coremltools are closed by the collector, with a warning: let it come here
    finally:
        logging.disable(disabled)
