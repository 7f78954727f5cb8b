"""What is wrong with a body, field by field, in words of ours: never what was sent."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

from fastapi.exceptions import RequestValidationError

from service.settings import MOST_REQUESTS

_NAME = re.compile(r"[A-Za-z0-9_-]{1,40}")
_MOST_PROBLEMS = 20
_MOST_CHARACTERS = 200

# Fields that take one of several types: pydantic tells of each type and each item, a reader wants to know what is taken.
_CHOICES = {
    "context": "expected a string or a list of one or more strings, each valid Unicode and not only white space",
    "inputs": 'expected {"question": text, "context": text}, the same with a list of questions and one context or as many, '
    "or a list of such pairs; each text valid Unicode and not only white space",
}


def describe_validation(error: RequestValidationError) -> str:
    """Every problem of a body in one sentence each, without what was sent."""
    problems: dict[str, str] = {}
    long: set[str] = set()
    for item in error.errors():
        place, choice = _place(item["loc"][1:])
        if item["type"] == "too_long" and item["ctx"]["max_length"] == MOST_REQUESTS:
            long.add(place)
            problems[place] = f"{place}: at most {item['ctx']['max_length']:,} are read, found more; a service may take fewer (GET /v1/models)"
        elif place not in long:
            problems[place] = f"{place}: {choice}" if choice else _sentence(item, place)
    return "; ".join(list(problems.values())[:_MOST_PROBLEMS])


def _sentence(item: Any, place: str) -> str:
    if item["type"] == "extra_forbidden":
        # A key is the caller's text: it is named only where it looks like a name.
        parent, _, key = place.rpartition(".")
        return "unknown key" + (f" {key!r}" if key != "?" else "") + (f" in {parent}" if parent else "")
    if item["type"] == "missing":
        return f"{place} is missing"
    if item["type"] == "string_unicode":
        return f"{place}: expected valid Unicode, found a lone surrogate (half of a UTF-16 pair)"
    text = str(item["msg"]).removeprefix("Value error, ").replace("Input should be", "expected").replace("String should", "text should")
    return f"{place}: {text[:_MOST_CHARACTERS]}"


def _place(location: Sequence[int | str]) -> tuple[str, str | None]:
    """The field as one would write it ("requests[2].top_k"), up to one that takes several types, and then what it takes."""
    place = ""
    for part, following in zip_longest(location, location[1:]):
        if isinstance(part, int):
            place += f"[{part}]"
            continue
        place += ("." if place else "") + (part if _NAME.fullmatch(part) else "?")
        # Behind a field of several types stands the one that was tried, which is no field.
        if part in _CHOICES and isinstance(following, str):
            return place, _CHOICES[part]
    return place or "body", None
