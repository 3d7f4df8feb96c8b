"""How the analysis `wins` is shown: what the soup keeps and gains, against a model asked twice, with examples."""

from __future__ import annotations

from souping.core.types import Json, entries, number, part
from souping.report.format import clean, count, interval, percent
from souping.report.registry import register
from souping.report.tables import Row, Section, TableCell, TableGrid, grid


def section(data: Row) -> Section:
    rows = entries(data, "by_failures")
    none, every = (rows[0], rows[-1]) if rows else ({}, {})
    head = (
        f"Of {count(data.get('items'))} items of the report fold the soup keeps {_share(none)} where every ingredient "
        f"is right ({_items(none)}), and solves {_share(every)} where all fail ({_items(every)})."
    )
    again = part(data, "again")
    if again.get("not_estimable"):
        note = f"How much of this one model asked twice would show is not estimable: {clean(again['not_estimable'])}."
    else:
        own = part(again, "soup")
        note = (
            f"A model asked twice does not solve the same items twice: the soup itself flips on "
            f"{percent(own.get('flips'))} % of all items, keeps {percent(own.get('kept'))} % of what it solved and "
            f"gains {percent(own.get('gained'))} % of what it failed. What goes beyond that is the soup's."
        )
    examples = tuple(_example(example) for example in entries(data, "examples"))
    folded = Section("Examples, side by side", (f"Chosen {clean(data.get('rule'))}.",), folded=examples)
    return Section(
        "What did the soup keep of its ingredients?",
        (head, note),
        grids=(_kept(data), _failures(data)),
        folded=(folded,) if examples else (),
    )


def _share(told: Row) -> str:
    around = interval(told.get("low"), told.get("high"))
    return f"{percent(told.get('share'))} %{f' ({around})' if around else ''}"


def _items(told: Row) -> str:
    return f"{count(told.get('items'))} items"


def _cell(told: Json) -> TableCell:
    given = told if isinstance(told, dict) else {}
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


register("wins", section)
