"""The tables of harder questions: whole articles in place of paragraphs, and paragraphs that do not answer.

Legend: a "row" is one cell text per column; every row ends with the cell that says where its numbers come from.
"""

from __future__ import annotations

from collections.abc import Callable

from pocketqa.reporting.tables import Runs, form_cell, interval, model_cell, questions_cell, questions_of, signed, table
from pocketqa.runs import RunFile, compare
from pocketqa.statistics import Interval

ARTICLES_HEAD = ("model", "engine, precision", "data", "questions", "EM [95 %]", "F1 [95 %]", "F1 against its own paragraphs", "measured")
REFUSAL_HEAD = (
    "model",
    "engine, precision",
    "data",
    "questions of wrong paragraphs",
    "AUROC",
    "wrong paragraphs refused",
    "own paragraphs refused",
    "F1 lost by refusing [95 %]",
    "measured",
)
ARTICLES = "Asked of the whole article, all its paragraphs joined, in place of the paragraph with the answer:"
REFUSALS = (
    "Asked of another paragraph of the same article, which does not answer: AUROC is how often that paragraph has the larger margin for no answer;",
    "what is refused is so at the model's own threshold, which was chosen on the development split.",
)
Link = Callable[[str, RunFile], str]


def harder_lines(own: Runs, articles: Runs, link: Link) -> list[str]:
    """Both tables, each where there is something to show, with an empty line after each.

    own, articles: evaluations of one split, of questions asked of their own paragraphs and of their whole articles.
    """
    refusing = {name: run for name, run in own.items() if run.results.get("no_answer")}
    lines: list[str] = []
    if articles:
        lines += [ARTICLES, "", *table(ARTICLES_HEAD, [_article_row(name, run, own, link) for name, run in _last(articles).items()]), ""]
    if refusing:
        lines += [*REFUSALS, "", *table(REFUSAL_HEAD, [_refusal_row(name, run, link) for name, run in refusing.items()]), ""]
    return lines


def _last(articles: Runs) -> Runs:
    """Of evaluations of one form on the same questions the one that was measured last: what joins the windows of an article is code."""
    by_date = sorted(articles.items(), key=lambda item: item[1].created)
    last = {_measured(run): name for name, run in by_date}
    return {name: run for name, run in articles.items() if last[_measured(run)] == name}


def _article_row(name: str, run: RunFile, own: Runs, link: Link) -> tuple[str, ...]:
    r, subject = run.results, run.subjects[0]
    same = [other for other in own.values() if _measured(other) == _measured(run)]
    against = signed(compare(run, same[-1]).f1) if same else "not measured on the same questions"
    scores = (interval(Interval.from_json(r["intervals"][key])) for key in ("exact_match", "f1"))
    return (model_cell(subject), form_cell(subject), run.data[0].name, questions_cell(r), *scores, against, link(name, run))


def _refusal_row(name: str, run: RunFile, link: Link) -> tuple[str, ...]:
    found, subject = run.results["no_answer"], run.subjects[0]
    shares = (f"{100 * found[key]:.1f} %" if key in found else "no threshold" for key in ("refused_wrong", "refused_right"))
    cost = interval(Interval.from_json(found["f1_cost"])) if "f1_cost" in found else "no threshold"
    counted = (f"{found['wrong_paragraphs']:,}", f"{found['auroc']:.3f}")
    return (model_cell(subject), form_cell(subject), run.data[0].name, *counted, *shares, cost, link(name, run))


def _measured(run: RunFile) -> tuple[str, ...]:
    """Which form of which model on which questions."""
    subject = run.subjects[0]
    return subject.sha256, subject.engine, subject.precision, *questions_of(run)
