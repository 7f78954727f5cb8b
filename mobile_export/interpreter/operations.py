"""What each operation of an ML program computes, with torch kernels, written from the definitions in coremltools (mil/ops/defs).

`KERNELS` holds one function for each type of operation that is known.  Floats come to it as float32, however the program stores them, unless the
kernel is `exact`; the caller rounds the result to its declared type.
"""

from __future__ import annotations

import mobile_export.interpreter.elementwise
import mobile_export.interpreter.products
import mobile_export.interpreter.rearrangements  # noqa: F401  (these three register their functions)
from mobile_export.interpreter.kernels import KERNELS, Kernel

__all__ = ["KERNELS", "Kernel"]
