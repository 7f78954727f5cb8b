"""Other people's libraries at work without their chatter."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Silence warnings, log lines below errors and what is printed: hints about other uses, GPUs that are not there, progress bars.

    Some of the libraries set up logging as they are imported or used; it is left as it was.
    """
    handlers, before = logging.root.handlers[:], logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
        logging.root.handlers[:] = handlers
