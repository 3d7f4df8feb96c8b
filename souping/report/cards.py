"""Model card of a soup: recipe and use, the report's verdict and scores, and on the Hub its ingredients' licences."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING

from souping.core.types import Json, entries, number, part, texts
from souping.report import sections, tables
from souping.report.format import clean, escape_markdown, in_words
from souping.report.render import fenced, markdown_table
from souping.report.sections import benchmark, headline
from souping.report.tables import Report, Row, comparisons, scores

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")
ANYWHERE = ("merge._target_=", "merge.allow_pickle=", "merge.nonfinite=")
"""Overrides of a rebuild that hold on every machine."""


def card(parts: Report, licences: Mapping[str, str] | None = None) -> str:
    """README.md of a soup, with the Hub's front matter; `licences` are {ingredient: the Hub's name, "" if unknown}.

    `parts` is a report, or what is known of one when the soup is written: `recipe` is required. Numbers are the report
    fold's and nothing else's: before there is a report the card has none. No date and no timing enters, and of a
    path-like name its last part alone.
    """
    known = named(parts)
    blocks = [*head(known), *_evidence(known), *_usage(known), *rebuild(known), *_licence(licences)]
    return "\n\n".join(block for block in [_front(known, licences), *blocks] if block) + "\n"


def named(parts: Report) -> Report:
    """The parts with ingredients' names that show no machine."""
    return {**parts, "recipe": _named(part(parts, "recipe"))}


def head(known: Report) -> list[str]:
    """Title, what it is, and the recipe."""
    return [f"# {_title(known)}", _summary(known), "## Recipe", markdown_table(tables.recipe(known)), _method(known)]


def parents_named(recipe: Row) -> list[str]:
    """The models that a recipe is made of as the Hub names them: those that came from there, else all names it could
    have."""
    sources = [str(source).partition("@")[0] for source in part(recipe, "sources").values()]
    return sources or [name for name in texts(recipe, "ingredients") if HUB_NAME.fullmatch(name)]


def public_name(name: Json) -> str:
    """`org/name` and plain names as they are; of any other path the last part, so that no machine shows through."""
    text = clean(name)
    return text if HUB_NAME.fullmatch(text) else re.split(r"[/\\]", text.rstrip("/\\"))[-1]


def _named(recipe: Row) -> Row:
    sources = {public_name(name): source for name, source in part(recipe, "sources").items()}
    return {**recipe, "ingredients": [public_name(n) for n in texts(recipe, "ingredients")], "sources": sources}


def _title(parts: Report) -> str:
    return f"Soup {escape_markdown(part(parts, 'recipe').get('id'))}"


def kind(parts: Report) -> str:
    told = parts.get("benchmark")
    name = told.get("name") if isinstance(told, Mapping) else told
    return re.sub(r"[^\w.-]+", "-", clean(name)).strip("-") or "benchmark"


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


def rebuild(parts: Report) -> list[str]:
    """How the soup is made again, from the folder that holds this card: the run's own command names its machine."""
    recipe = part(parts, "recipe")
    absent = [name for name in texts(recipe, "ingredients") if name not in part(recipe, "sources")]
    text = f"Run it in this folder. {sections.REBUILD}"
    if absent:
        names = escape_markdown(in_words(absent))
        text += f" The folder of {names} has to be given: `'pool.candidates=[{{name: NAME, path: FOLDER}}]'`."
    own = [word for word in shlex.split(clean(parts.get("rebuild"))) if word.startswith(ANYWHERE)]
    command = shlex.join(["python", "-m", "souping", "+experiment=rebuild", "recipe=recipe.json", "out=rebuilt", *own])
    return ["## Rebuild", text, fenced(command)]


def _usage(parts: Report) -> list[str]:
    """Lines of Python that load the soup from its folder."""
    lines = [
        'folder = "."  # this folder, or the name of its repository',
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
    ]
    imports, name = ["from transformers import AutoModelForCausalLM, AutoTokenizer"], "AutoModelForCausalLM"
    if part(part(parts, "recipe"), "settings").get("adapters") == "keep":
        name = "AutoPeftModelForCausalLM"
        imports = [f"from peft import {name}", "from transformers import AutoTokenizer"]
    return ["## Usage", fenced("\n".join([*imports, "", *lines, f"model = {name}.from_pretrained(folder)"]), "python")]


def _method(parts: Report) -> str:
    recipe = part(parts, "recipe")
    settings = recipe.get("settings")
    extra = f" Settings: `{json.dumps(settings, sort_keys=True)}`." if settings else ""
    return f"Method `{clean(recipe.get('method'))}`, stored as `{clean(recipe.get('dtype'))}`.{extra}"


def relicensed(text: str, licences: Mapping[str, str]) -> str:
    """A soup's card with the licences replaced.

    Raises:
        ValueError: its front matter cannot be read.
    """
    from huggingface_hub import ModelCard
    from yaml import YAMLError  # type: ignore[import-untyped]

    try:
        made = ModelCard(text, ignore_metadata_errors=True)
    except YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    for key, value in _licence_keys(licences).items():
        setattr(made.data, key, value)
    body = re.sub(r"\n## Licence\n.*?(?=\n## |\Z)", "\n", made.text, flags=re.DOTALL).strip()
    return "\n\n".join([f"---\n{made.data.to_yaml()}\n---", body, *_licence(licences)]) + "\n"


def _front(known: Report, licences: Mapping[str, str] | None) -> str:
    """The front matter. Names that the Hub cannot have are left out; results are put in by the Hub's own writer."""
    recipe = part(known, "recipe")
    parents = parents_named(recipe)
    table: dict[str, Json] = {"base_model": parents} if parents else {}
    table |= {"library_name": "transformers", **_licence_keys(licences), "tags": ["merge", "souping"]}
    table |= {"base_model_relation": "merge"} if parents else {}
    if not entries(known, "rows"):
        import yaml

        return f"---\n{yaml.dump(table, allow_unicode=True, sort_keys=False).strip()}\n---"
    from huggingface_hub import ModelCardData

    results = _results(known)
    name = f"soup {clean(recipe.get('id'))}" if results else None
    data = ModelCardData(model_name=name, eval_results=results or None)
    for key, value in table.items():
        data[key] = value
    return f"---\n{data.to_yaml()}\n---"


def _licence_keys(licences: Mapping[str, str] | None) -> dict[str, str]:
    """The one licence that all ingredients share, else `other`, for which the Hub wants a name and a link."""
    if not licences:
        return {}
    names = {name.strip().lower() for name in licences.values()}
    if len(names) == 1 and not re.match(r"other\b|unknown$|$", name := names.pop()):
        return {"license": name}
    return {"license": "other", "license_name": "licences-of-the-ingredients", "license_link": "README.md"}


def _results(known: Report) -> list[EvalResult]:
    """The soup's objective and categories on the report fold."""
    from huggingface_hub import EvalResult

    row = next((row for row in entries(known, "rows") if row.get("kind") == "soup"), None)
    if row is None or known.get("limit"):
        return []
    data = {"name": f"{benchmark(known) or 'benchmark'}, report fold", "type": kind(known)}
    pairs = [("objective", row.get("objective")), *part(row, "scores").items()]
    values = [(clean(label), number(score.get("mean"))) for label, score in pairs if isinstance(score, Mapping)]
    return [
        EvalResult(
            task_type="text-generation",
            dataset_name=data["name"],
            dataset_type=data["type"],
            metric_type="accuracy",
            metric_name=label,
            metric_value=round(value, 6),
        )
        for label, value in values
        if value is not None
    ]


def _evidence(known: Report) -> list[str]:
    """The verdict and the report fold's tables."""
    if not entries(known, "rows"):
        return []
    if known.get("limit"):
        return ["## Result", escape_markdown(headline(known))]
    text = (
        "Percent correct on the report fold with 95 % intervals. Neither the choice of the ingredients nor that of the "
        "weights saw these items."
    )
    if part(known, "selection").get("published"):
        text += " The ingredients were chosen by published scores; what those were measured on, the choice has seen."
    words = [escape_markdown(line) for line in (headline(known), *sections.losses(known))]
    grids = [scores(known), *([comparisons(known)] if entries(known, "comparisons") else [])]
    return ["## Result", *words, text, *map(markdown_table, grids)]


def _licence(licences: Mapping[str, str] | None) -> list[str]:
    if not licences:
        return []
    listed = ", ".join(f"{name} ({licence or 'unknown'})" for name, licence in licences.items())
    text = f"Ingredients and their licences: {listed}. Read all of them before you use or share this model."
    return ["## Licence", escape_markdown(text)]
