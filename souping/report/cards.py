"""Model card of a soup: recipe and use, the report's verdict and scores, and on the Hub its ingredients' licences."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from typing import Any

from souping.core.text import first_line
from souping.core.types import Json, UserError, entries, part, texts
from souping.report import sections, tables
from souping.report.format import clean, escape_markdown, in_words
from souping.report.render import fenced, markdown_table
from souping.report.sections import benchmark, headline
from souping.report.tables import Report, Row, comparisons, scores

CARD = "README.md"
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")
ANYWHERE = ("merge._target_=", "merge.allow_pickle=", "merge.nonfinite=")
"""Overrides of a rebuild that hold on every machine."""


def card(parts: Report, licences: Mapping[str, str] | None = None) -> str:
    """README.md of a soup, with the Hub's front matter; `licences` are {ingredient: the Hub's name, "" if unknown}.

    `parts` is a report, or what there is of one when the soup is written: `recipe` is required. All numbers are from
    the report fold; a card that is written before the report has none. Dates, timings and folders stay out.
    """
    report = {**parts, "recipe": _public(part(parts, "recipe"))}
    recipe = part(report, "recipe")
    title = f"# Soup {escape_markdown(recipe.get('id'))}"
    blocks = [_front(recipe, licences), title, _summary(report), "## Recipe", markdown_table(tables.recipe(report))]
    blocks += [_method(recipe), *_evidence(report), *_usage(recipe), *_rebuild(report), *_licence(licences)]
    return "\n\n".join(blocks) + "\n"


def public_name(name: Json) -> str:
    """`org/name` and plain names as they are; of any other path the last part, so that no machine shows through."""
    text = clean(name)
    return text if HUB_NAME.fullmatch(text) else re.split(r"[/\\]", text.rstrip("/\\"))[-1]


def _public(recipe: Row) -> Row:
    sources = {public_name(name): source for name, source in part(recipe, "sources").items()}
    return {**recipe, "ingredients": [public_name(n) for n in texts(recipe, "ingredients")], "sources": sources}


def _summary(parts: Report) -> str:
    size = len(texts(part(parts, "recipe"), "ingredients"))
    what = "A copy of one model: the search found no mixture above it"
    if size > 1:
        what = f"A weighted average of the weights of {size} models"
    made = f", made with souping for {escape_markdown(benchmark(parts))}" if benchmark(parts) else ", made with souping"
    dry = "A dry run on a few items made it: no number of it means anything. " if parts.get("limit") else ""
    return f"{dry}{what}{made}. {escape_markdown(_why(parts))}".strip()


def _why(parts: Report) -> str:
    """Which categories the experts were picked for."""
    chosen = part(part(parts, "selection"), "experts")
    by_model: dict[str, list[str]] = {}
    for category, name in chosen.items():
        by_model.setdefault(public_name(name), []).append(clean(category))
    shown = "; ".join(f"{name} for {in_words(names)}" for name, names in by_model.items())
    return f"Experts: {shown}." if shown else ""


def _rebuild(parts: Report) -> list[str]:
    """How the soup is made again, from the folder that holds this card: the run's own command names its machine."""
    recipe = part(parts, "recipe")
    absent = [name for name in texts(recipe, "ingredients") if name not in part(recipe, "sources")]
    text = f"Run it in this folder. {sections.REBUILD}"
    if absent:
        names = escape_markdown(in_words(absent))
        text += f" Give the folder of {names}: `'pool.candidates=[{{name: NAME, path: FOLDER}}]'`."
    kept = [word for word in shlex.split(clean(parts.get("rebuild"))) if word.startswith(ANYWHERE)]
    command = shlex.join(["python", "-m", "souping", "+experiment=rebuild", "recipe=recipe.json", "out=rebuilt", *kept])
    return ["## Rebuild", text, fenced(command)]


def _usage(recipe: Row) -> list[str]:
    """Lines of Python that load the soup from its folder."""
    lines = [
        'folder = "."  # this folder, or the name of its repository',
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
    ]
    imports, name = ["from transformers import AutoModelForCausalLM, AutoTokenizer"], "AutoModelForCausalLM"
    if part(recipe, "settings").get("adapters") == "keep":
        name = "AutoPeftModelForCausalLM"
        imports = [f"from peft import {name}", "from transformers import AutoTokenizer"]
    return ["## Usage", fenced("\n".join([*imports, "", *lines, f"model = {name}.from_pretrained(folder)"]), "python")]


def _method(recipe: Row) -> str:
    settings = recipe.get("settings")
    extra = f" Settings: `{json.dumps(settings, sort_keys=True)}`." if settings else ""
    return f"Method `{clean(recipe.get('method'))}`, stored as `{clean(recipe.get('dtype'))}`.{extra}"


def relicensed(text: str, licences: Mapping[str, str], path: str = CARD) -> str:
    """A soup's card with the licences replaced.

    Raises:
        UserError: its front matter cannot be read.
    """
    import yaml

    front = re.match(r"\s*---\n(.*?)\n---(?:\n|$)", text, re.DOTALL)
    try:
        table = (yaml.safe_load(front[1]) if front else None) or {}
        keys = {**table, **_licence_keys(licences)}
    except (yaml.YAMLError, TypeError) as error:
        reason = first_line(error)
        raise UserError(f"{path}: cannot be read as a model card: {reason}: correct it, or delete it") from error
    body = re.sub(r"\n## Licence\n.*?(?=\n## |\Z)", "\n", text[front.end() if front else 0 :], flags=re.DOTALL).strip()
    return "\n\n".join([_matter(keys), body, *_licence(licences)]) + "\n"


def _matter(table: Mapping[str, Any]) -> str:
    import yaml  # type: ignore[import-untyped]

    return f"---\n{yaml.dump(dict(table), allow_unicode=True, sort_keys=False).strip()}\n---"


def _front(recipe: Row, licences: Mapping[str, str] | None) -> str:
    """The front matter, without ingredients that cannot be a model's name on the Hub."""
    sources = [str(source).partition("@")[0] for source in part(recipe, "sources").values()]
    parents = sources or [name for name in texts(recipe, "ingredients") if HUB_NAME.fullmatch(name)]
    table: dict[str, Any] = {"base_model": parents} if parents else {}
    table |= {"library_name": "transformers", **_licence_keys(licences), "tags": ["merge", "souping"]}
    table |= {"base_model_relation": "merge"} if parents else {}
    return _matter(table)


def _licence_keys(licences: Mapping[str, str] | None) -> dict[str, str]:
    """The one licence that all ingredients share, else `other`, for which the Hub wants a name and a link."""
    if not licences:
        return {}
    names = {name.strip().lower() for name in licences.values()}
    if len(names) == 1 and not re.match(r"other\b|unknown$|$", name := names.pop()):
        return {"license": name}
    return {"license": "other", "license_name": "licences-of-the-ingredients", "license_link": "README.md"}


def _evidence(report: Report) -> list[str]:
    """The verdict and the report fold's tables."""
    if not entries(report, "rows"):
        return []
    if report.get("limit"):
        return ["## Result", escape_markdown(headline(report))]
    text = (
        "Percent correct on the report fold with 95 % intervals. Neither the choice of the ingredients nor that of the "
        "weights saw these items."
    )
    if part(report, "selection").get("published"):
        text += " The ingredients were chosen by published scores; what those were measured on, the choice has seen."
    words = [escape_markdown(line) for line in (headline(report), *sections.losses(report))]
    grids = [scores(report), *([comparisons(report)] if entries(report, "comparisons") else [])]
    return ["## Result", *words, text, *map(markdown_table, grids)]


def _licence(licences: Mapping[str, str] | None) -> list[str]:
    if not licences:
        return []
    listed = ", ".join(f"{name} ({licence or 'unknown'})" for name, licence in licences.items())
    text = f"Ingredients and their licences: {listed}. Read all of them before you use or share this model."
    return ["## Licence", escape_markdown(text)]
