"""The soup's model card: a function of the recipe and the search alone, so that equal soups have equal cards."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from souping.report import rebuilding, story, tables, texts
from souping.report.markdown import fenced, table
from souping.report.tables import Report, part
from souping.report.texts import escape_markdown as escape

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")


def card(parts: Report) -> str:
    """README.md of a soup's folder, with the Hub's front matter.

    `parts` is a report, or what is known of one when the soup is written: `recipe` is required; `selection`,
    `objective`, `experiment`, `benchmark`, `folds`, `rebuild` and `search` are used where present. `search` is
    {objective, categories {name: mean}, items, singles {ingredient: objective}} on the search fold, fractions of 1.
    No date, path or timing enters: a path-like name is cut to its last part.
    """
    known = named(parts)
    blocks = [_front_matter(known), *head(known), *_scores(known), *rebuild(known)]
    return "\n\n".join(block for block in blocks if block) + "\n"


def named(parts: Report) -> Report:
    """The parts with ingredients' names that show no machine."""
    return {**parts, "recipe": _named(part(parts, "recipe"))}


def head(known: Report) -> list[str]:
    """Title, what it is, and the recipe."""
    return [f"# {_title(known)}", _summary(known), "## Recipe", table(tables.recipe(known)), _method(known)]


def parents(recipe: Mapping[str, Any]) -> list[str]:
    """The models that a recipe is made of as the Hub names them: those that came from there, else all names it could
    have."""
    sources = [str(source).partition("@")[0] for source in (recipe.get("sources") or {}).values()]
    return sources or [name for name in recipe["ingredients"] if HUB_NAME.fullmatch(name)]


def public_name(name: Any) -> str:
    """`org/name` and plain names as they are; of any other path the last part, so that no machine shows through."""
    text = texts.clean(name)
    return text if HUB_NAME.fullmatch(text) else re.split(r"[/\\]", text.rstrip("/\\"))[-1]


def _named(recipe: Mapping[str, Any]) -> dict[str, Any]:
    sources = {public_name(name): source for name, source in (recipe.get("sources") or {}).items()}
    return {**recipe, "ingredients": [public_name(n) for n in recipe.get("ingredients") or []], "sources": sources}


def _title(parts: Report) -> str:
    return f"Soup {escape(part(parts, 'recipe').get('id'))}"


def _front_matter(parts: Report) -> str:
    """YAML; strings are JSON strings, which YAML reads alike. Names that the Hub cannot have are left out."""
    names = parents(part(parts, "recipe"))
    lines = ["---"]
    if names:
        lines += ["base_model:", *(f"- {_quote(name)}" for name in names), "base_model_relation: merge"]
    lines += ["library_name: transformers", "tags:", "- merge", "- souping", *_index(parts), "---"]
    return "\n".join(lines)


def _index(parts: Report) -> list[str]:
    """The model-index of the search fold's scores, where there are any."""
    metrics = _metrics(parts)
    if not metrics:
        return []
    name = texts.clean(part(parts, "recipe").get("id"))
    data = story.benchmark(parts) or "benchmark"
    lines = [
        "model-index:",
        f"- name: {_quote(f'soup {name}')}",
        "  results:",
        "  - task:",
        "      type: text-generation",
    ]
    lines += ["    dataset:", f"      name: {_quote(f'{data}, search fold')}", f"      type: {_quote(kind(parts))}"]
    lines.append("    metrics:")
    for label, value in metrics:
        lines += ["    - type: accuracy", f"      name: {_quote(label)}", f"      value: {round(value, 6)!r}"]
    return lines


def kind(parts: Report) -> str:
    found = parts.get("benchmark")
    name = found.get("name") if isinstance(found, Mapping) else found
    return re.sub(r"[^\w.-]+", "-", texts.clean(name)).strip("-") or "benchmark"


def _metrics(parts: Report) -> list[tuple[str, float]]:
    """[(label, fraction)]: the objective, then every category, on the search fold."""
    search = part(parts, "search")
    whole = search.get("objective", part(parts, "objective").get("search"))
    pairs = [("objective", whole), *part(search, "categories").items()]
    values = [(texts.clean(label), texts.number(value)) for label, value in pairs]
    return [(label, value) for label, value in values if value is not None]


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _summary(parts: Report) -> str:
    names = part(parts, "recipe")["ingredients"]
    many = len(names) > 1
    what = (
        f"A weighted average of the weights of {len(names)} models"
        if many
        else "A copy of one model: the search found no mixture above it"
    )
    made = (
        f", made with souping for {escape(story.benchmark(parts))}" if story.benchmark(parts) else ", made with souping"
    )
    return f"{what}{made}. {escape(_why(parts))}".strip()


def _why(parts: Report) -> str:
    """Which categories the experts were picked for."""
    chosen = part(part(parts, "selection"), "experts")
    by_model: dict[str, list[str]] = {}
    for category, name in chosen.items():
        by_model.setdefault(public_name(name), []).append(texts.clean(category))
    shown = "; ".join(f"{name} for {texts.listed(found)}" for name, found in by_model.items())
    return f"Experts: {shown}." if shown else ""


def rebuild(parts: Report) -> list[str]:
    command = rebuilding.rebuild(parts, folder="")
    return (
        ["## Rebuild", f"Run it in this folder. {rebuilding.how_to_rebuild(parts)}", fenced(command)] if command else []
    )


def _method(parts: Report) -> str:
    found = part(parts, "recipe")
    settings = json.dumps(found.get("settings") or {}, sort_keys=True)
    extra = f" Settings: `{settings}`." if found.get("settings") else ""
    return f"Method `{texts.clean(found.get('method'))}`, stored as `{texts.clean(found.get('dtype'))}`.{extra}"


def _scores(parts: Report) -> list[str]:
    """Scores on the search fold: they chose the weights, so they flatter; the report of the run has the fair ones."""
    metrics = _metrics(parts)
    if not metrics:
        return []
    items = part(parts, "search").get("items", part(parts, "folds").get("search"))
    size = f" ({texts.count(items)} items)" if texts.number(items) is not None else ""
    text = (
        f"Percent correct on the search fold{size}. The weights were chosen on these items, so the numbers flatter "
        "the soup; the run's report has those of items that nothing was chosen on."
    )
    lines = [(label, texts.percent(value)) for label, value in metrics]
    singles = part(parts, "search").get("singles")
    lines += [(f"objective of {public_name(n)} alone", texts.percent(v)) for n, v in (singles or {}).items()]
    return ["## Scores", text, table(tables.grid(("score", "%"), lines))]
