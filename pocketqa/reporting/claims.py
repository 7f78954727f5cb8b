"""Published claims audited: what a source says, what its own figures give, what this project measured, and what follows.

The claims and the figures of their sources stand in `claims.toml`, as printed.  Everything else is computed here: what is recomputed comes from those
figures, ours from the run files (`claim_queries.py`), and the verdict from the comparison of the first two, unless the claim compares or names things
wrongly, which only a reader can tell.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from pocketqa.errors import DataError
from pocketqa.reporting.claim_queries import QUERIES, Query, answer
from pocketqa.reporting.tables import Runs, table
from pocketqa.runs import RunFile
from pocketqa.types import JSON

AGREES, BOUND, ONE_READING, DIFFERS = "agrees", "agrees as a bound", "agrees in one reading", "differs"
STATED = ("unlike things", "not in the paper", "not so")  # what no figure tells
VERDICTS = {
    AGREES: "the figures of its source give the claim, within its rounding",
    BOUND: "the figures lie within the bound that the claim gives",
    ONE_READING: "some of the readings that the words allow give it",
    DIFFERS: "the figures of its source, or of others where it has none, give something else",
    STATED[0]: "the claim sets figures beside each other that are of different things",
    STATED[1]: "nothing in the paper that the claim is about says it",
    STATED[2]: "the thing itself is otherwise",
}
HEAD = ("claim", "source", "the source's own figures", "recomputed from them", "ours", "verdict")
NO_FIGURES, NOT_OURS = "none", "nothing to measure"
Link = Callable[[str, RunFile], str]


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure as printed, and where."""

    text: str
    label: str  # row and column
    table: str  # key of the table

    @property
    def value(self) -> float:
        """The number."""
        return float(self.text)


@dataclass(frozen=True, slots=True)
class Recomputed:
    """A number out of a source's figures: `do` is one of RECIPES, each of `of` one figure or several neighbours."""

    do: str
    of: tuple[tuple[Figure, ...], ...]
    words: str = ""
    unit: str = ""
    digits: int = 1

    @property
    def value(self) -> float:
        """The number, not rounded."""
        return RECIPES[self.do][1](*([figure.value for figure in part] for part in self.of))

    @property
    def text(self) -> str:
        """Rounded, with unit and words."""
        return f"{self.value:.{self.digits}f}{_unit(self.unit)}{f' ({self.words})' if self.words else ''}"


@dataclass(frozen=True, slots=True)
class Claim:
    """One row of the audit."""

    claim: str
    source: str  # key of Claims.sources
    place: str
    says: str = ""  # the figure as it stands in the claim
    unit: str = ""
    to: float = 0.0  # what it is rounded to, 0: its last digit
    bound: str = "equal"  # or "at most"
    recomputed: tuple[Recomputed, ...] = ()
    figure: str = ""  # in words, where nothing can be recomputed
    ours: tuple[Query, ...] = ()
    stated: str = ""  # one of STATED
    note: str = ""

    @property
    def verdict(self) -> str:
        """One of VERDICTS."""
        if self.stated:
            return self.stated
        agreeing = sum(self._agrees(found.value) for found in self.recomputed)
        whole = AGREES if self.bound == "equal" else BOUND
        return whole if agreeing == len(self.recomputed) else ONE_READING if agreeing else DIFFERS

    def _agrees(self, value: float) -> bool:
        unit = self.to or 10.0 ** -len(self.says.partition(".")[2])
        above = value - float(self.says)
        return above <= unit / 2 + 1e-9 and (self.bound == "at most" or above >= -unit / 2 - 1e-9)


@dataclass(frozen=True, slots=True)
class Claims:
    """The claims of a file with their sources and tables."""

    rows: tuple[Claim, ...] = ()
    sources: Mapping[str, tuple[str, str]] = field(default_factory=dict)  # key -> citation, how it was read
    tables: Mapping[str, tuple[str, str]] = field(default_factory=dict)  # key -> key of the source, place


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _largest(before: Sequence[float], after: Sequence[float]) -> float:
    return max(b - a for a, b in zip(before, after, strict=True))


# name -> how many parts it takes, and the number that they give
RECIPES: dict[str, tuple[int, Callable[..., float]]] = {
    "value": (1, lambda a: float(a[0])),
    "percent": (2, lambda a, b: 100 * float(a[0]) / float(b[0])),
    "less": (2, lambda a, b: 100 * (1 - float(b[0]) / float(a[0]))),
    "faster": (2, lambda a, b: 100 * (float(a[0]) / float(b[0]) - 1)),
    "change": (2, lambda a, b: float(b[0]) - float(a[0])),
    "mean": (1, _mean),
    "largest": (2, _largest),
}


def claim_lines(claims: Claims, runs: Runs, link: Link, note: str = "") -> list[str]:
    """The section of RESULTS.md: what the verdicts mean, the table, notes, sources.

    link: says in which run file a number of ours stands; note: what there is to know of our pair.
    """
    if not claims.rows:
        return []
    numbers = {row.claim: str(number) for number, row in enumerate((row for row in claims.rows if row.note), 1)}
    rows = [_row(row, claims, runs, link, numbers.get(row.claim, "")) for row in claims.rows]
    notes = [f"- ({number}) {row.note}" for row in claims.rows if (number := numbers.get(row.claim))]
    sources = [f"- {cite}: {seen}." for key, (cite, seen) in claims.sources.items() if any(_uses(row, key, claims) for row in claims.rows)]
    meanings = "; ".join(f"`{verdict}`: {meaning}" for verdict, meaning in VERDICTS.items())
    said = f"The verdict is of the claim against the figures of its source, not against ours. {meanings}.{f' Of our pair: {note}' if note else ''}"
    return [said, "", *table(HEAD, rows), "", *notes, "", "How the sources were read:", "", *sources]


def read_claims(path: Path) -> Claims:
    """The claims of a file.  Raises DataError with everything that is wrong with it."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DataError(f"{path}: expected claims in TOML, found {error}.") from None
    problems: list[str] = []
    tables, sources = document.get("tables", {}), document.get("sources", {})
    figures = _figures(tables, sources, problems)
    rows = tuple(row for entry in document.get("claims", []) if (row := _claim(entry, figures, sources, problems)))
    if problems:
        raise DataError(f"{path}: {'; '.join(problems)}.")
    cited = {key: (str(source["cite"]), str(source["seen"])) for key, source in sources.items()}
    return Claims(rows, cited, {key: (str(entry["source"]), str(entry["place"])) for key, entry in tables.items()})


def _row(row: Claim, claims: Claims, runs: Runs, link: Link, number: str) -> tuple[str, ...]:
    source = ", ".join(part for part in (_short(claims.sources[row.source][0]), row.place) if part)
    recomputed = "; ".join(found.text for found in row.recomputed) or NO_FIGURES
    ours = "; ".join(line for query in row.ours for line in answer(query, runs, link)) or NOT_OURS
    return (f"{row.claim}{f' ({number})' if number else ''}", source, row.figure or _rests_on(row, claims), recomputed, ours, row.verdict)


def _rests_on(row: Claim, claims: Claims) -> str:
    """The figures that are recomputed from, by the table in which they stand, each once."""
    found: dict[str, list[str]] = {}
    for part in (part for recomputed in row.recomputed for part in recomputed.of):
        first, last = part[0], part[-1]
        said = f"{first.label} {first.text}" if len(part) == 1 else f"{first.label} to {last.label.rpartition(', ')[2]}, {len(part)} figures"
        found.setdefault(first.table, []).append(said)
    places = {key: _place(row, key, claims) for key in found}
    return "; ".join(f"{places[key]}: {', '.join(dict.fromkeys(said))}" for key, said in found.items()) or NO_FIGURES


def _place(row: Claim, key: str, claims: Claims) -> str:
    """Where a table stands, with its source where that is not the claim's."""
    source, place = claims.tables[key]
    return place if source == row.source else f"{_short(claims.sources[source][0])}, {place}"


def _uses(row: Claim, key: str, claims: Claims) -> bool:
    return row.source == key or any(claims.tables[figure.table][0] == key for found in row.recomputed for part in found.of for figure in part)


def _short(cite: str) -> str:
    return cite.partition(" (")[0]


def _unit(unit: str) -> str:
    return f" {unit}" if unit else ""


def _figures(tables: JSON, sources: JSON, problems: list[str]) -> dict[str, dict[str, list[Figure]]]:
    """Table -> row -> figures, in the order of the columns."""
    found: dict[str, dict[str, list[Figure]]] = {}
    for key, source in sources.items():
        problems += [f"source {key}: {name} is missing" for name in ("cite", "seen") if name not in source]
    for key, entry in tables.items():
        problems += [f"table {key}: {name} is missing" for name in ("source", "place", "columns", "rows") if name not in entry]
        if entry.get("source") not in sources:
            problems.append(f"table {key}: source must be one of {', '.join(sources)}, found {entry.get('source')!r}")
        columns = entry.get("columns", [])
        found[key] = {}
        for row, cells in entry.get("rows", {}).items():
            if len(cells) != len(columns) or not all(isinstance(cell, str) and _is_number(cell or "0") for cell in cells):
                problems.append(f"table {key}, {row}: expected {len(columns)} figures as strings, found {cells}")
                continue
            found[key][row] = [Figure(cell, f"{row}, {column}", key) for column, cell in zip(columns, cells, strict=True)]
    return found


def _claim(entry: JSON, figures: dict[str, dict[str, list[Figure]]], sources: JSON, problems: list[str]) -> Claim | None:
    where = f"claim {entry.get('claim')!r}"
    known = {item.name for item in fields(Claim)} - {"stated"} | {"verdict"}
    before = len(problems)
    problems += [f"{where}: unknown entry {key!r}" for key in entry if key not in known]
    problems += [f"{where}: {key} is missing" for key in ("claim", "source", "place") if key not in entry]
    if entry.get("source") not in sources:
        problems.append(f"{where}: source must be one of {', '.join(sources)}, found {entry.get('source')!r}")
    stated = entry.get("verdict", "")
    if stated and stated not in STATED:
        problems.append(f"{where}: a verdict that is stated must be one of {', '.join(STATED)}, found {stated!r}; the others follow from the figures")
    if not stated and not (entry.get("recomputed") and _is_number(entry.get("says", ""))):
        problems.append(f"{where}: expected a verdict, or a figure under says and how it is recomputed")
    if entry.get("says", "").lstrip("-") not in entry.get("claim", ""):
        problems.append(f"{where}: says {entry['says']!r}, which does not stand in its words")
    recomputed = tuple(made for item in entry.get("recomputed", []) if (made := _recomputed(item, figures, where, problems)))
    queries = tuple(_query(item, where, problems) for item in entry.get("ours", []))
    if len(problems) > before:
        return None
    rest = {key: value for key, value in entry.items() if key not in ("recomputed", "ours", "verdict")}
    return Claim(**rest, recomputed=recomputed, ours=queries, stated=stated)


def _recomputed(item: JSON, figures: dict[str, dict[str, list[Figure]]], where: str, problems: list[str]) -> Recomputed | None:
    do, cells = item.get("do"), item.get("of", [])
    if do not in RECIPES:
        problems.append(f"{where}: do must be one of {', '.join(RECIPES)}, found {do!r}")
        return None
    if len(cells) != RECIPES[do][0]:
        problems.append(f"{where}: {do} takes {RECIPES[do][0]} of the tables' cells, found {len(cells)}")
    parts = tuple(_cells(cell, figures) for cell in cells)
    problems += [f"{where}: no figure at {cell!r}" for cell, part in zip(cells, parts, strict=True) if not part]
    unknown = [key for key in item if key not in ("do", "of", "words", "unit", "digits")]
    problems += [f"{where}: unknown entry {key!r} beside {do}" for key in unknown]
    if unknown or not all(parts):
        return None
    return Recomputed(do, parts, str(item.get("words", "")), str(item.get("unit", "")), int(item.get("digits", 1)))


def _cells(address: str, figures: dict[str, dict[str, list[Figure]]]) -> tuple[Figure, ...]:
    """The figures at "table/row/column" or "table/row/first..last"; none where there is one missing."""
    key, _, rest = address.partition("/")
    row, _, columns = rest.rpartition("/")
    line = figures.get(key, {}).get(row, [])
    at = {figure.label.removeprefix(f"{row}, "): i for i, figure in enumerate(line)}
    first, _, last = columns.partition("..")
    if first not in at or (last or first) not in at:
        return ()
    found = tuple(line[at[first] : at[last or first] + 1])
    return found if all(figure.text for figure in found) else ()


def _query(item: JSON, where: str, problems: list[str]) -> Query:
    name = str(item.get("query"))
    if name not in QUERIES:
        problems.append(f"{where}: query must be one of {', '.join(QUERIES)}, found {name!r}")
    elif set(item) - {"query"} != set(QUERIES[name].needs):
        problems.append(f"{where}: the query {name!r} takes {', '.join(QUERIES[name].needs)}, found {', '.join(set(item) - {'query'}) or 'nothing'}")
    return Query(name, {key: str(value) for key, value in item.items() if key != "query"})


def _is_number(text: object) -> bool:
    try:
        float(str(text))
    except ValueError:
        return False
    return True
