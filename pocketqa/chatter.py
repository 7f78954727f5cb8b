"""What libraries log about themselves while they are imported, kept from people who asked a question.

transformers imports torchao wherever it is installed (ExecuTorch brings it), which warns about CUDA libraries that it does not find and about types
of its own that PyTorch has come to know.  Nothing here uses it through transformers.
"""

from __future__ import annotations

import logging

TALKATIVE = ("torchao", "torch.utils._pytree")


def hush() -> None:
    """Let these loggers through from errors up.  To be called where a process begins, before anything heavy is imported."""
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
