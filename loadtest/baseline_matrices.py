"""What the cores that it may use reach on products of large matrices, in TFLOP/s: what no server of models can exceed.

python -m loadtest.baseline_matrices
"""

from __future__ import annotations

import json
import sys
import time

import torch

from pocketqa.runtimes import usable_cores

SIDE = 2048
SECONDS = 1.0
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def main() -> int:
    """Print the rates as one JSON object."""
    torch.set_num_threads(usable_cores())
    print(json.dumps({name: round(rate(dtype), 4) for name, dtype in DTYPES.items()}))
    return 0


@torch.inference_mode()
def rate(dtype: torch.dtype) -> float:
    """10^12 floating-point operations a second: the best of several products, since others may use the machine too."""
    left, right = (torch.randn(SIDE, SIDE).to(dtype) for _ in range(2))
    left @ right
    best, ends = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < ends:
        began = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - began)
    return 2 * SIDE**3 / best / 1e12


if __name__ == "__main__":
    sys.exit(main())
