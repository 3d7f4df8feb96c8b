"""Every value that a comment in conf/ or a page gives as an example is composed, typed and from a file, and arrives."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import jsonschema
import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import get_object
from omegaconf import OmegaConf

from souping.analysis import Analysis
from souping.cli.advice import owners
from souping.cli.config_keys import CHOSEN, SETTABLE, RunKeys
from souping.cli.job import opened
from souping.cli.parts import build_part, component_kind
from souping.cli.settings_file import with_file
from souping.cli.settings_from_config import run_settings
from souping.core.fields import hints_of
from souping.core.types import UserError
from tests.conftest import ROOT
from tests.support.composition import unchecked
from tests.support.scripts import script

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SCHEMA = jsonschema.Draft7Validator(
    json.loads((ROOT / "conf" / "settings.schema.json").read_text())
)
CLOSING = {"{": "}", "[": "]"}
GIVEN = {
    "benchmark=jsonl": ["benchmark.path=items.jsonl"],
    "evaluator=command": ["evaluator.command='evaluate {model}'"],
    "evaluator=lm_eval": ["evaluator.tasks=[mgsm]"],
    "objective=tree": ["objective.tree={all: [x]}"],
    "objective=weighted": ["objective.category_weights={x: 1}"],
    "optimiser=fixed": ["optimiser.weights=[1]"],
    "pool=folders": ["pool.candidates=[a,b]"],
    "pool=trajectory": ["pool.path=run"],
    "scores=logs": ["scores.path=logs"],
    "scores=table": ["scores.path=scores.csv"],
}
"""Overrides of the keys that a choice requires."""
Example = tuple[str, str]
"""(key, value as it is typed)"""


def bracketed(text: str) -> str:
    """The list or mapping that a text begins with."""
    depth = 0
    for place, character in enumerate(text):
        depth += (character in "[{") - (character in "]}")
        if depth == 0:
            return text[: place + 1]
    raise AssertionError(f"brackets are open: {text}")


def typed_in(text: str) -> Iterator[Example]:
    """The `KEY=VALUE` of a text."""
    for match in re.finditer(r"(?<![\w.+~-])([a-z_]+(?:\.[a-z_]+)*)=(?=\S)", text):
        value = text[match.end() :]
        shell = value[0] == "'" and value[1] in CLOSING
        if shell:
            value = value[1:]
        if value[0] in CLOSING:
            value = bracketed(value)
        elif value[0] in "'\"":
            value = value[: value.index(value[0], 1) + 1]
        else:
            value = re.split(r"[\s`'\"|]", value)[0].rstrip(".,;:")
            value = value if "(" in value else value.partition(")")[0]
        yield match[1], value


def in_remark(key: str, remark: str, hint: Any) -> Iterator[Example]:
    """The values that the comment of a key gives."""
    for match in re.finditer(r"[\[{]", remark):
        literal = bracketed(remark[match.start() :])
        inside = any(
            remark[: match.start()].count(a) > remark[: match.start()].count(b)
            for a, b in CLOSING.items()
        )
        # `{model}` is a part of a command.
        if not inside and re.search("[:,]", literal):
            yield key, literal
    for match in re.finditer(
        r"https?://[\w.:/]+|\b\d+[GM]i?B\b|(?<!\{)\b(cuda|column|keep):[A-Z]+", remark
    ):
        yield key, match[0]
    for inner in (hint, *get_args(hint)):
        options = get_args(inner) if get_origin(inner) is Literal else ()
        for option in options:
            if re.search(rf"(?<![\w-]){re.escape(str(option))}(?![\w-])", remark):
                yield key, str(option)


def hint_of(key: str, choice: str) -> Any:
    """The annotation of a component's key, or of a root key."""
    if not choice:
        return hints_of(RunKeys).get(key)
    group, _, name = choice.partition("=")
    text = (ROOT / "conf" / group / f"{name}.yaml").read_text()
    target = re.search(r"_target_: (\S+)", text)
    assert target
    return hints_of(get_object(target[1])).get(key.rpartition(".")[2])


def found() -> list[Example]:
    """All examples, each once."""
    reference = script(ROOT / "docs" / "make_reference.py")
    examples = dict[Example, None]()
    for path in sorted((ROOT / "conf").glob("*/*.yaml")):
        if path.parent.name == "experiment":
            continue
        opening, place, keys = reference.choice(path)
        examples |= dict.fromkeys(typed_in(opening))
        for key, (_, remark) in keys.items():
            hint = hint_of(f"{place}.{key}", f"{path.parent.name}={path.stem}")
            examples |= dict.fromkeys(in_remark(f"{place}.{key}", remark, hint))
    for key, remark in yaml.safe_load((ROOT / "docs/reference.yaml").read_text())["root"].items():
        examples |= dict.fromkeys(in_remark(key, remark, hint_of(key, "")))
    for page in PAGES:
        text = re.sub(r"```python.*?```", "", page.read_text(), flags=re.DOTALL)
        examples |= dict.fromkeys(typed_in(" ".join(text.split())))
    return [each for each in examples if sets_value(*each)]


def sets_value(key: str, value: str) -> bool:
    """Whether this sets a key, and not with a shell's variable, dots, or several values of a multirun."""
    is_setting = key in owners() or key in {*SETTABLE} - {*CHOSEN}
    if not is_setting or re.search(r"\$MODELS|hydra:|^(\.\.\.)?$", value):
        return False
    (override,) = OverridesParser.create().parse_overrides([f"{key}={usable(value)}"])
    return not override.is_sweep_override()


def usable(value: str) -> str:
    """A value with numbers in the place of words that stand for some, and without dots for more entries."""
    value = re.sub(r",\s*\.\.\.", "", value)
    value = re.sub(r"(?<=: )(weight|number|score)\b", "1", value)
    return re.sub("^cuda:N$", "cuda:1", value)


def plain(value: Any) -> Any:
    """Tuples as lists, as a configuration has them."""
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    return list(map(plain, value)) if isinstance(value, list | tuple) else value


@cache
def base(choice: str) -> dict[str, Any]:
    """The configuration of a run with a choice."""
    group = choice.partition("=")[0]
    words = [word for word in GIVEN["pool=folders"] if group != "pool"]
    chosen = choice.replace("=shapley", "=[shapley]")
    return unchecked([*words, *filter(None, [chosen]), *GIVEN.get(choice, [])])


def refusal(key: str, value: Any, choice: str, folder: Path) -> str:
    """Why a value does not arrive at the component of a choice, or at a run; empty if it does."""
    *place, name = key.split(".")
    node = base(choice)
    for above in place:
        node = node[above]
    try:
        if not place:
            run_settings({**node, name: value}, folder)
            return ""
        kind = Analysis if place[0] == "analysis" else component_kind(place[0])
        part = build_part({**node, name: value}, kind, ".".join(place))
    except UserError as error:
        # The component has the value: a file of this name is not there.
        return "" if re.search("no such file|is not a file", str(error)) else str(error)
    assert plain(vars(part)[name]) == value, (key, value, vars(part)[name])
    return ""


def taker(key: str, value: Any, folder: Path) -> str:
    """The first choice that takes a value; empty for a root key."""
    refused = {}
    for choice in owners().get(key, [""]):
        refused[choice] = refusal(key, value, choice, folder)
        if not refused[choice]:
            return choice
    raise AssertionError(f"{key}={value} arrives nowhere: {refused}")


def at(table: Any, key: str) -> Any:
    for name in key.split("."):
        table = table[name]
    return table


@dataclass
class Batch:
    """Examples that are composed together: {key: value as it is typed} and {group: choice}."""

    values: dict[str, str] = field(default_factory=dict)
    choices: dict[str, str] = field(default_factory=dict)

    def takes(self, key: str, choice: str) -> bool:
        group = choice.partition("=")[0]
        return key not in self.values and self.choices.get(group, choice) == choice

    @property
    def words(self) -> list[str]:
        required = chain.from_iterable(GIVEN.get(choice, []) for choice in self.choices.values())
        pool = [] if "pool" in self.choices else GIVEN["pool=folders"]
        words = [*pool, *(word.replace("=shapley", "=[shapley]") for word in self.choices.values())]
        return [*words, *(word for word in required if word.partition("=")[0] not in self.values)]


EXAMPLES = found()


def test_the_examples_include_those_of_engines_and_trackers() -> None:
    assert len(EXAMPLES) > 100
    assert ("engine.args", "{max_model_len: 4096, gpu_memory_utilization: 0.85}") in EXAMPLES
    assert ("tracker.args", "{tags: [nightly], job_type: search}") in EXAMPLES


def test_every_example_arrives_as_it_is_typed_and_from_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    batches = list[Batch]()
    for key, text in EXAMPLES:
        (override,) = OverridesParser.create().parse_overrides([f"{key}={usable(text)}"])
        value = OmegaConf.to_container(OmegaConf.create([override.value()]))[0]  # type: ignore[index]
        choice = taker(key, value, tmp_path)
        batch = next((each for each in batches if each.takes(key, choice)), None)
        if batch is None:
            batch = Batch()
            batches.append(batch)
        batch.values[key] = usable(text)
        if choice:
            batch.choices[choice.partition("=")[0]] = choice
    for batch in batches:
        check_batch(batch, tmp_path / "run.yaml")


def check_batch(batch: Batch, file: Path) -> None:
    """The examples of a batch, typed and from files, dotted and nested, are composed to the same values."""
    words = [opened(f"{key}={value}") for key, value in batch.values.items()]
    typed = unchecked([*batch.words, *words])
    values = {key: at(typed, key) for key in batch.values}
    nested = dict[str, Any]()
    for key, value in values.items():
        *place, name = key.split(".")
        table = nested
        for above in place:
            table = table.setdefault(above, {})
        table[name] = value
    for content in (values, nested):
        SCHEMA.validate(content)
        file.write_text(yaml.safe_dump(content, allow_unicode=True))
        from_file = unchecked(with_file([str(file), *batch.words]))
        assert {key: at(from_file, key) for key in values} == values
