"""Model card of a soup: recipe and use, and once there is a report its verdict and scores, and on the Hub a licence.

Which licence a soup can have: the strictest of its ingredients', where that one takes in all the others. Names are the
Hub's (https://huggingface.co/docs/hub/repositories-licenses). This is a reading of the licences' own compatibility
rules for the usual cases and no legal advice; what it does not know becomes `other`, with the list.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
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
PERMISSIVE = (
    "cc0-1.0", "unlicense", "wtfpl", "pddl", "mit", "isc", "zlib", "bsl-1.0", "ncsa", "postgresql", "bsd",
    "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "ecl-2.0", "afl-3.0", "apache-2.0",
)  # fmt: skip
"""From the loosest to the strictest; each may go into every later one, and into the licences below."""
OWN_TERMS = (
    "llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "llama4", "gemma", "openrail", "openrail++",
    "bigscience-openrail-m", "creativeml-openrail-m", "bigcode-openrail-m", "bigscience-bloom-rail-1.0", "openmdw-1.0",
    "apple-amlr", "deepfloyd", "grok2-community",
)  # fmt: skip
"""Licences that take in permissive ones and nothing else."""
CHAINS = (
    (*PERMISSIVE, "cc-by-4.0", "cc-by-sa-4.0", "gpl-3.0", "agpl-3.0"),
    (*PERMISSIVE, "mpl-2.0", "lgpl-3.0", "gpl-3.0", "agpl-3.0"),
    (*PERMISSIVE, "cc-by-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0"),
    *((*PERMISSIVE, name) for name in OWN_TERMS),
)
"""In a chain, the whole may have the licence of its last member. Two licences of no common chain do not go together."""
NO_DERIVATIVES = re.compile(r"cc-by(-nc)?-nd-.*")
LLAMA = {
    "llama3": ("Llama 3", "Built with Meta Llama 3"),
    "llama3.1": ("Llama", "Built with Llama"),
    "llama3.2": ("Llama", "Built with Llama"),
    "llama3.3": ("Llama", "Built with Llama"),
    "llama4": ("Llama", "Built with Llama"),
}
"""{licence: (what the name of a model made from it must begin with, what must be shown)}, from the licences' 1.b.i."""


@dataclass(frozen=True)
class Licence:
    """Soup's licence as the Hub's card names it; `name` only for `other`. `notes` are for readers of the card."""

    id: str
    name: str = ""
    notes: tuple[str, ...] = ()


def card(parts: Report, licence: Licence | None = None) -> str:
    """README.md of a soup, with the Hub's front matter.

    `parts` is a report, or what is known of one when the soup is written: `recipe` is required. Numbers are the report
    fold's and nothing else's: before there is a report the card has none. No date and no timing enters, and of a
    path-like name its last part alone.
    """
    known = named(parts)
    blocks = [*head(known), *_evidence(known), *_usage(known), *rebuild(known), *_licence(licence)]
    return "\n\n".join(block for block in [_front(known, licence), *blocks] if block) + "\n"


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


def relicensed(text: str, licence: Licence) -> str:
    """The card beside a soup, with the licence changed.

    Raises:
        ValueError: its front matter cannot be read.
    """
    from huggingface_hub import ModelCard
    from yaml import YAMLError  # type: ignore[import-untyped]

    try:
        made = ModelCard(text, ignore_metadata_errors=True)
    except YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    for key, value in _licence_keys(licence).items():
        setattr(made.data, key, value)
    notes = "\n\n".join(_licence(licence))
    body = re.sub(r"\n## Licence\n.*?(?=\n## |\Z)", "\n", made.text, flags=re.DOTALL).strip()
    return f"---\n{made.data.to_yaml()}\n---\n\n{body}{f'{chr(10) * 2}{notes}' if notes else ''}\n"


def _front(known: Report, licence: Licence | None) -> str:
    """The front matter. Names that the Hub cannot have are left out; results are put in by the Hub's own writer."""
    recipe = part(known, "recipe")
    parents = parents_named(recipe)
    table: dict[str, Json] = {"base_model": parents} if parents else {}
    table |= {"library_name": "transformers", **_licence_keys(licence), "tags": ["merge", "souping"]}
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


def _licence_keys(licence: Licence | None) -> dict[str, str]:
    """The Hub wants a name and a link beside `other`."""
    if licence is None:
        return {}
    keys = {"license": licence.id}
    return {**keys, "license_name": licence.name, "license_link": "README.md"} if licence.id == "other" else keys


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


def _licence(licence: Licence | None) -> list[str]:
    return ["## Licence", *map(escape_markdown, licence.notes)] if licence and licence.notes else []


def combine(licences: Mapping[str, str]) -> Licence:
    """The licence of a soup of ingredients with these licences, {ingredient: the Hub's name, "" where unknown}."""
    names = {value.strip().lower() for value in licences.values()}
    strictest = next((name for name in sorted(names) if _takes_in(name, names)), "")
    if strictest:
        notes = [_mixed(licences, strictest)] if len(names) > 1 else []
        return Licence(strictest, notes=(*notes, *_llama(names)))
    return Licence("other", _slug(names), (_open(licences), *_forbidden(licences), *_llama(names)))


def _takes_in(name: str, names: set[str]) -> bool:
    """Whether the whole may have this licence: it is the only one, or a chain holds all and it comes last there."""
    if NO_DERIVATIVES.fullmatch(name) or name in ("", "unknown") or name.startswith("other"):
        return False
    chains = [chain for chain in CHAINS if names <= set(chain)]
    return names == {name} or any(name == max(names, key=chain.index) for chain in chains)


def _slug(names: set[str]) -> str:
    plain = (name.removeprefix("other:") for name in names)
    known = sorted({re.sub(r"[^a-z0-9.+-]+", "-", name).strip("-") or "unknown" for name in plain})
    return "-and-".join(known) or "unknown"


def _listed(licences: Mapping[str, str]) -> str:
    return ", ".join(f"{name} ({licence or 'unknown'})" for name, licence in licences.items())


def _mixed(licences: Mapping[str, str], strictest: str) -> str:
    return f"The ingredients' licences are {_listed(licences)}; the strictest, {strictest}, holds for the whole."


def _open(licences: Mapping[str, str]) -> str:
    unknown = any(value.strip().lower() in ("", "unknown") for value in licences.values())
    why = "not all of them are known" if unknown else "none of them is known to take in the others"
    return (
        f"The ingredients' licences are {_listed(licences)}; {why}, so all of them hold: read them before you use this."
    )


def _forbidden(licences: Mapping[str, str]) -> list[str]:
    owners = [name for name, licence in licences.items() if NO_DERIVATIVES.fullmatch(licence.strip().lower())]
    return [f"The licence of {owner} allows nobody to share what is made from it." for owner in owners]


def _llama(names: set[str]) -> list[str]:
    """Wishes of the Llama licences to whoever shares a model made from theirs."""
    wishes = dict.fromkeys(LLAMA[name] for name in sorted(names) if name in LLAMA)
    return [
        f"{shown}. The licence asks that the name of a model made from it begin with {begin!r} and that these words be "
        "shown."
        for begin, shown in wishes
    ]
