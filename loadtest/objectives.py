"""What a load test is to reach: `p99<250ms`, `errors<0.1%`, `student p50<40ms`.

A request that failed counts as one whose answer never came, so no percentile becomes better when a server refuses.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from loadtest.questions import MODELS

ERRORS = "errors"
FORMS = '"p99<250ms", "max<2s", "errors<0.1%", each for both models or, as in "student p99<250ms", for one'
_FORM = re.compile(rf"(?:({'|'.join(MODELS)})\s+)?(p\d{{1,2}}(?:\.\d+)?|max|errors)\s*<\s*(\d+(?:\.\d+)?)\s*(ms|s|%)")


@dataclass(frozen=True, slots=True)
class Objective:
    """A percentile ("p99"), the longest time ("max") or the share of failures ("errors") below a limit: milliseconds, or percent for errors.

    model: whose; empty for each.
    """

    of: str
    limit: float
    model: str = ""

    @classmethod
    def parse(cls, text: str) -> Objective:
        """Out of the forms above.  Raises ValueError."""
        found = _FORM.fullmatch(text.strip())
        if found is None or (found[2] == ERRORS) != (found[4] == "%"):
            raise ValueError(f"Expected an objective such as {FORMS}; found {text!r}.")
        return cls(found[2], float(found[3]) * (1000 if found[4] == "s" else 1), found[1] or "")

    def found(self, times: Sequence[float], failures: int) -> float:
        """What it limits, in the unit of the limit, of answers that took these milliseconds and of so many failures; infinite without any request."""
        count = len(times) + failures
        if not count:
            return math.inf
        if self.of == ERRORS:
            return 100 * failures / count
        quantile = 1.0 if self.of == "max" else float(self.of[1:]) / 100
        # The value above which no more than the share 1 - quantile lies: between a finite and an infinite time there is nothing to interpolate.
        return float(np.quantile([*times, *[math.inf] * failures], quantile, method="higher"))

    def met(self, times: Sequence[float], failures: int) -> bool:
        """Whether it is reached."""
        return self.found(times, failures) < self.limit

    def verdict(self, model: str, times: Sequence[float], failures: int) -> str:
        """In a line."""
        found = self.found(times, failures)
        shown = "an answer that never came" if math.isinf(found) else f"{found:.3g}{self._unit}" if found < 1000 else f"{found:.0f}{self._unit}"
        return f"{model} {self.of}<{self.limit:g}{self._unit}: {'met' if found < self.limit else 'MISSED'}, found {shown}"

    @property
    def _unit(self) -> str:
        return "%" if self.of == ERRORS else "ms"

    def __str__(self) -> str:
        return f"{self.model} {self.of}<{self.limit:g}{self._unit}".strip()
