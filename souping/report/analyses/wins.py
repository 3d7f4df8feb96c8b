"""How the analysis `wins` is shown: what the soup keeps and gains, against a model asked twice, with examples."""

from __future__ import annotations

from collections.abc import Mapping

from souping.core.types import Json, entries, number, part
from souping.report.format import clean, count, in_words, interval, percent
from souping.report.registry import register
from souping.report.tables import Row, Section, TableCell, TableGrid, grid


def section(data: Row) -> Section:
    """A few sentences; the tables and examples are folded away."""
    kept = [f"{_share(row.get('kept'))} of {clean(row.get('name'))}'s" for row in entries(data, "kept")]
    again = (_flips(data),)
    absent = bool(part(data, "again").get("not_estimable"))
    head = f"Of the items that an ingredient solves the soup keeps {in_words(kept)}. {_gains(data)}"
    lines = (head,) if absent else (head, *again)
    examples = tuple(_example(example) for example in entries(data, "examples"))
    folded = [
        Section("By ingredient", again if absent else (), grids=(_kept(data),)),
        Section("By how many ingredients fail", grids=(_failures(data),)),
    ]
    if examples:
        folded.append(Section("Examples, side by side", (f"Chosen {clean(data.get('rule'))}.",), folded=examples))
    return Section("What did the soup keep of its ingredients?", lines, folded=tuple(folded))


def _gains(data: Row) -> str:
    """The soup where all ingredients are right, exactly one fails, and all fail."""
    rows = entries(data, "by_failures")
    words = {0: "where every ingredient is right", 1: "where exactly one fails", len(rows) - 1: "where all fail"}
    told = [
        f"{_share(row)} {words[place]} ({count(row.get('items'))} items)"
        for place, row in enumerate(rows)
        if place in words and (number(row.get("items")) or 0.0) > 0
    ]
    return f"It solves {in_words(told)}."


def _flips(data: Row) -> str:
    again = part(data, "again")
    if again.get("not_estimable"):
        return f"What one model asked twice would keep is not estimable: {clean(again['not_estimable'])}."
    own = part(again, "soup")
    return (
        f"The soup asked twice flips on {percent(own.get('flips'))} % of the items, keeps {percent(own.get('kept'))} % "
        f"of what it solved and gains {percent(own.get('gained'))} % of what it failed: what goes beyond is a change."
    )


def _share(told: Json) -> str:
    given = told if isinstance(told, Mapping) else {}
    around = interval(given.get("low"), given.get("high"))
    return f"{percent(given.get('share'))} %{f' ({around})' if around else ''}"


def _cell(told: Json) -> TableCell:
    given = told if isinstance(told, Mapping) else {}
    return TableCell(percent(given.get("share")), interval(given.get("low"), given.get("high")))


def _kept(data: Row) -> TableGrid:
    rows = entries(data, "kept")
    again = any(part(row, "again") for row in rows)
    header = ["ingredient", "it solves, %", "the soup keeps, %", "and gains of the rest, %"]
    lines: list[list[str | TableCell]] = [
        [
            clean(row.get("name")),
            percent(part(data, "solved").get(str(row.get("name")))),
            _cell(row.get("kept")),
            _cell(row.get("gained")),
            *([percent(part(row, "again").get(key)) for key in ("kept", "gained")] if again else []),
        ]
        for row in rows
    ]
    return grid([*header, *(["asked again it keeps", "and gains"] if again else [])], lines)


def _failures(data: Row) -> TableGrid:
    rows = entries(data, "by_failures")
    last = len(rows) - 1
    words = {0: "none", 1: "exactly one", last: "all"} if last > 1 else {0: "none", last: "all"}
    lines = [
        (words.get(int(number(row.get("fail")) or 0), count(row.get("fail"))), count(row.get("items")), _cell(row))
        for row in rows
    ]
    return grid(("ingredients that fail", "items", "the soup solves, %"), lines)


def _example(example: Row) -> Section:
    """One item: what is asked, what is right, and what each model answers."""
    told = part(example, "answers")
    lines = [
        (clean(name), clean(part(told, name).get("text")), _right(part(told, name)))
        for name in sorted(told, key=lambda name: name != "soup")
    ]
    asked = (f"Asked: {clean(example.get('prompt'))}", f"Right: {clean(example.get('reference'))}")
    title = f"{clean(example.get('category'))}: {clean(example.get('kind'))} ({clean(example.get('item'))})"
    return Section(title, asked, grids=(grid(("model", "answer", "right"), lines, left=(0, 1, 2)),))


def _right(record: Row) -> str:
    score = number(record.get("score")) or 0.0
    word = "yes" if score == 1 else "no" if score == 0 else percent(score)
    ended = clean(record.get("outcome"))
    return word if ended in ("finished", "") else f"{word} ({ended})"


register("wins", section, place=1)
