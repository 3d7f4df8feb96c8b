"""The card of a soup that goes to the Hub: the run's report in figures, the parents, the licence."""

from __future__ import annotations

import re
from typing import Any

from souping.report import cards, story, tables, texts
from souping.report.licences import Licence
from souping.report.markdown import table
from souping.report.tables import Report, entries, part
from souping.report.texts import escape_markdown as escape


def hub_card(report: Report, licence: Licence) -> str:
    """README.md for the Hub with the report fold's scores in its model-index (fractions of 1)."""
    known = cards.named(report)
    body = "\n\n".join(block for block in [*cards.head(known), *_evidence(known), *_licence(licence)] if block)
    more = cards.rebuild(known)
    return _front(known, licence) + "\n\n" + "\n\n".join([body, *more]) + "\n"


def relicensed(text: str, licence: Licence) -> str:
    """A card that lies beside a soup, with the licence and nothing else changed.

    Raises:
        ValueError: its front matter cannot be read.
    """
    from huggingface_hub import ModelCard
    from yaml import YAMLError  # type: ignore[import-untyped]

    try:
        found = ModelCard(text, ignore_metadata_errors=True)
    except YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    for key, value in _licence_keys(licence).items():
        setattr(found.data, key, value)
    notes = "\n\n".join(_licence(licence))
    body = re.sub(r"\n## Licence\n.*?(?=\n## |\Z)", "\n", found.text, flags=re.DOTALL).strip()
    return f"---\n{found.data.to_yaml()}\n---\n\n{body}{f'{chr(10) * 2}{notes}' if notes else ''}\n"


def _front(known: Report, licence: Licence) -> str:
    """The front matter, by the Hub's own writer."""
    from huggingface_hub import ModelCardData

    recipe, results = part(known, "recipe"), _results(known)
    parents = cards.parents(recipe)
    data = ModelCardData(
        base_model=parents or None,  # type: ignore[arg-type]  # a list is what the Hub wants
        library_name="transformers",
        tags=["merge", "souping"],
        model_name=f"soup {texts.clean(recipe.get('id'))}" if results else None,
        eval_results=results or None,
    )
    if parents:
        data["base_model_relation"] = "merge"
    for key, value in _licence_keys(licence).items():
        data[key] = value
    return f"---\n{data.to_yaml()}\n---"


def _licence_keys(licence: Licence) -> dict[str, str]:
    """The Hub wants a name and a link beside `other`."""
    keys = {"license": licence.id}
    return {**keys, "license_name": licence.name, "license_link": "README.md"} if licence.id == "other" else keys


def _results(known: Report) -> list[Any]:
    """The soup's objective and categories on the report fold."""
    from huggingface_hub import EvalResult

    row = next((row for row in entries(known, "rows") if row.get("kind") == "soup"), None)
    if row is None:
        return []
    data = {"name": f"{story.benchmark(known) or 'benchmark'}, report fold", "type": cards.kind(known)}
    pairs = [("objective", row.get("objective")), *(row.get("scores") or {}).items()]
    values = [(texts.clean(label), texts.number((score or {}).get("mean"))) for label, score in pairs]
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
    text = (
        "Percent correct on the report fold with 95 % intervals. Neither the choice of the ingredients nor that of the "
        "weights saw these items."
    )
    if part(known, "selection").get("published"):
        text += " The ingredients were chosen by published scores; what those were measured on, the choice has seen."
    blocks = ["## Result", escape(story.headline(known)), text, table(tables.scores(known))]
    compared = tables.comparisons(known) if entries(known, "comparisons") else None
    return [*blocks, table(compared)] if compared else blocks


def _licence(licence: Licence) -> list[str]:
    return ["## Licence", *map(escape, licence.notes)] if licence.notes else []
