"""Questions out of raw text: a sentence with a blank, whose filling stands elsewhere in the passage.

A span that occurs in two sentences of a passage (recurring spans, Ram et al. 2021, "Splinter") is taken out of one of them, a question word put in
its place (Lewis et al. 2019), and the sentence becomes the question; what is left of the passage is the context.  In half of the questions the part
behind the blank comes first ("wh + B + A ?", Fabbri et al. 2020), as people would ask.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

MAX_SPAN_WORDS = 10
QUESTION_WORDS = range(6, 41)  # words of a sentence that makes a question
FIRST_YEAR, LAST_YEAR = 1000, 2099

_WORD = re.compile(r"\w+(?:['\u2019.,-]\w+)*")
# Not behind an initial or one of the commonest abbreviations.
_SENTENCE_END = re.compile(r"(?<=[.!?])(?<!\b[A-Z]\.)(?<!\b(?:Mr|Dr|St|No|Jr|Sr|vs)\.)[\"\u201d\u2019)]*\s+(?=[\"\u201c\u2018(]*[A-Z0-9])")
_BREAK = re.compile(r"[;:()\"\u201c\u201d]")  # no span reaches across
_END_MARKS = '.!?"\u201d\u2019 '
# Words with which no span begins or ends.
_LIST = """
a about after all also an and any are as at be became been before being between both but by can could de did do does during each either first for from
had has have he her him his how i if in into is it it's its last later many more most much no not of on one only or other our over own part
same several she since so some such than that the their them then there these they this those through to two under until up us was we well were what
when where which while who whom whose will with would you your
"""
_FUNCTION_WORDS = frozenset(_LIST.split())


@dataclass(frozen=True, slots=True)
class Cloze:
    """A question about what is left of a passage, and every place of the answer there."""

    context: str
    question: str
    answers: tuple[tuple[str, int], ...]  # text and its first code point in `context`


@dataclass(frozen=True, slots=True)
class _Word:
    start: int
    end: int
    lower: str
    sentence: int


@dataclass(frozen=True, slots=True)
class _Place:
    """One occurrence of a span."""

    start: int
    end: int
    sentence: int


def sentences(text: str) -> list[tuple[int, int]]:
    """Where each sentence begins and ends."""
    starts, ends = [0], []
    for match in _SENTENCE_END.finditer(text):
        ends.append(match.start() + len(match[0].rstrip()))
        starts.append(match.end())
    return list(zip(starts, [*ends, len(text.rstrip())], strict=True))


def passages(text: str, max_words: int) -> Iterator[str]:
    """A document in pieces of whole sentences, of at most `max_words` words each where no sentence is longer."""
    first, last, words = 0, 0, 0
    for start, end in sentences(text):
        count = len(text[start:end].split())
        if words and words + count > max_words:
            yield text[first:last]
            first, words = start, 0
        last, words = end, words + count
    if last > first:
        yield text[first:last]


def cloze(passage: str, draw: random.Random) -> Cloze | None:
    """One question about a passage, drawn among all that it allows; None where no span recurs."""
    places = sentences(passage)
    spans = recurring_spans(passage, places)
    choices = [(span, blank) for span in spans for blank in span if _askable(passage, places[blank.sentence])]
    if not choices:
        return None
    span, blank = draw.choice(choices)
    first, last = places[blank.sentence]
    after = places[blank.sentence + 1][0] if blank.sentence + 1 < len(places) else last
    context = (passage[:first] + passage[after:]).rstrip()
    others = [place for place in span if place.sentence != blank.sentence]
    answers = tuple((passage[p.start : p.end], p.start if p.start < first else p.start - (after - first)) for p in others)
    wh = _question_word(passage[blank.start : blank.end])
    return Cloze(context, _ask(passage[first : blank.start], wh, passage[blank.end : last], fronted=draw.random() < 0.5), answers)


def recurring_spans(passage: str, places: Sequence[tuple[int, int]]) -> list[list[_Place]]:
    """Every span that stands in at least two sentences, with all its places; of overlapping ones the longest.

    Upper and lower case are one.  A span neither begins nor ends with a function word, and is a name, holds a digit, or is of several words.
    """
    words = [
        _Word(match.start(), match.end(), match[0].lower(), number)
        for number, (start, end) in enumerate(places)
        for match in _WORD.finditer(passage, start, end)
    ]
    found: dict[tuple[str, ...], list[tuple[int, int]]] = defaultdict(list)
    for i, word in enumerate(words):
        if word.lower in _FUNCTION_WORDS:
            continue
        for j in range(i, min(i + MAX_SPAN_WORDS, len(words))):
            if words[j].sentence != word.sentence or (j > i and _BREAK.search(passage, words[j - 1].end, words[j].start)):
                break
            if words[j].lower not in _FUNCTION_WORDS:
                found[tuple(each.lower for each in words[i : j + 1])].append((i, j + 1))
    taken = [False] * len(words)
    spans = []
    for _, ranges in sorted(found.items(), key=lambda item: -len(item[0])):  # stable: of equal length by first occurrence
        if len({words[i].sentence for i, _ in ranges}) < 2:
            continue
        free = [_Place(words[i].start, words[j - 1].end, words[i].sentence) for i, j in ranges if not any(taken[i:j])]
        for i, j in ranges:
            taken[i:j] = [True] * (j - i)
        if len({place.sentence for place in free}) > 1 and _telling(passage, free):
            spans.append(free)
    return spans


def _telling(passage: str, places: Sequence[_Place]) -> bool:
    texts = [passage[place.start : place.end] for place in places]
    return " " in texts[0] or all(len(text) > 1 and (text[0].isupper() or any(map(str.isdigit, text))) for text in texts)


def _askable(passage: str, place: tuple[int, int]) -> bool:
    return len(passage[place[0] : place[1]].split()) in QUESTION_WORDS


def _question_word(answer: str) -> str:
    if answer.isdecimal() and FIRST_YEAR <= int(answer) <= LAST_YEAR:
        return "what year"
    return "how many" if answer[0].isdigit() else "what"


def _ask(before: str, wh: str, after: str, fronted: bool) -> str:
    before, after = before.strip(), after.strip().rstrip(_END_MARKS)
    fronted = fronted and before.count("(") == before.count(")")
    parts = [wh, after + ("," if after and before else ""), before.rstrip(",;: ")] if fronted else [before, wh, after]
    question = re.sub(r"\s+([,.;:])", r"\1", " ".join(part for part in parts if part)) + "?"
    return question[0].upper() + question[1:]
