"""From the tokens of an answer to whole words, as Hugging Face's option `align_to_words` asks for."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache

from pocketqa.spans import overlaps_any
from pocketqa.types import Answer

# Signs that Unicode counts as symbols and BERT's tokenizer as punctuation.
_ASCII_SYMBOLS = frozenset("$+<=>^`|~")
# Chinese characters are a word each: the ranges of BERT's tokenizer that hold assigned characters.
_CHINESE = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2CEAF), (0x2F800, 0x2FA1F))


def aligned(answers: Iterable[Answer], contexts: Sequence[str], wanted: int) -> list[Answer]:
    """The first `wanted` answers widened to whole words; of several that then overlap only the best stays."""
    chosen: list[Answer] = []
    for answer in answers:
        if len(chosen) == wanted:
            break
        # Words overlap where parts of them do, so that no word is walked through twice.
        if not overlaps_any(chosen, answer.source, answer.start, answer.end):
            chosen.append(answer if answer.is_no_answer else _widened(answer, contexts[answer.source]))
    return chosen


def _widened(answer: Answer, context: str) -> Answer:
    start, end = answer.start, answer.end
    while start > 0 and _one_word(context[start - 1], context[start]):
        start -= 1
    while end < len(context) and _one_word(context[end - 1], context[end]):
        end += 1
    return replace(answer, text=context[start:end], start=start, end=end)


def _one_word(left: str, right: str) -> bool:
    """Whether two neighbouring characters belong to one word, as BERT's tokenizer splits before it looks into its vocabulary."""
    return _is_letter(left) and _is_letter(right)


@lru_cache(1024)
def _is_letter(character: str) -> bool:
    if character.isspace() or character in _ASCII_SYMBOLS or unicodedata.category(character)[0] in "PZ":
        return False
    return not any(first <= ord(character) <= last for first, last in _CHINESE)
