"""The soup's card: valid on the Hub, without a number before the report, with the report's own after it."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from souping.pipeline.upload import card
from tests.support.report import sample


def parts(**changes: Any) -> dict[str, Any]:
    """What is known when the soup is written."""
    report, _ = sample(columns=3)
    keys = ("experiment", "benchmark", "selection", "recipe", "objective", "folds")
    return {**{key: report[key] for key in keys}, **changes}


def front(text: str) -> dict[str, Any]:
    _, matter, _ = text.split("---\n", 2)
    return dict(yaml.safe_load(matter))


def test_before_the_report_it_names_parents_and_no_number() -> None:
    text, recipe = card(parts()), parts()["recipe"]
    assert front(text) == {
        "base_model": recipe["ingredients"],
        "base_model_relation": "merge",
        "library_name": "transformers",
        "tags": ["merge", "souping"],
    }
    assert "search fold" not in text
    for name, weight, mark in zip(recipe["ingredients"], recipe["weights"], recipe["fingerprints"], strict=True):
        assert f"| {name} | {weight:.4g} | {mark[:16]} |" in text
    assert "pantry, BFCL-shaped, not BFCL" in text
    assert "A copy of one model" in card({"recipe": sample(k=1, columns=3)[0]["recipe"]})


def test_after_the_report_the_numbers_are_the_report_folds() -> None:
    from huggingface_hub import ModelCard

    report, _ = sample(columns=3)
    text = card(report)
    soup = next(row for row in report["rows"] if row["kind"] == "soup")
    for score in (soup["objective"], *soup["scores"].values()):
        assert f"{100 * score['low']:.1f} to {100 * score['high']:.1f}" in text
    assert report["verdict"]["sentence"] in text
    losses = report["losses"]
    assert f"better in {losses['above']} of 3 categories, worse in {losses['below']}" in text
    assert str(report["objective"]["search"]) not in text
    assert ModelCard(text).data.base_model == report["recipe"]["ingredients"]
    assert text == card({**report, "cost": {"seconds": 1}, "stability": {}})


def test_the_rebuild_command_names_nothing_of_the_machine() -> None:
    there = "python -m souping +experiment=rebuild recipe=/home/me/soup/recipe.json out=rebuilt store.path=/home/me/s"
    text = card(parts(rebuild=f"{there} merge.command=/home/me/mergekit-yaml merge._target_=mine.Median"))
    assert "/home" not in text
    assert "+experiment=rebuild recipe=recipe.json out=rebuilt merge._target_=mine.Median\n" in text


@pytest.mark.parametrize(
    ("settings", "name"), [({}, "AutoModelForCausalLM"), ({"adapters": "keep"}, "AutoPeftModelForCausalLM")]
)
def test_the_snippet_is_python_and_knows_adapters(settings: dict[str, str], name: str) -> None:
    code = card(parts(recipe=parts()["recipe"] | {"settings": settings})).split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")
    assert f"model = {name}.from_pretrained(folder)" in code


def test_no_path_of_the_machine_enters() -> None:
    recipe = parts()["recipe"] | {"ingredients": ["/home/me/models/a", "C:\\models\\b", "org/c"]}
    text = card(parts(recipe=recipe | {"weights": [0.2, 0.3, 0.5], "fingerprints": ["1", "2", "3"]}))
    assert "/home" not in text
    assert "models" not in text.split("## Usage")[0].split("## Recipe")[1]
    assert front(text)["base_model"] == ["a", "b", "org/c"]


@pytest.mark.parametrize("name", ['a: "b"', "- x", "né à|ü", "<b>", "x\ny", "yes", "\U0001f372", "x\x1b[31m\u202ey"])
def test_awkward_names_keep_the_yaml_valid(name: str) -> None:
    report, _ = sample(columns=3)
    recipe = report["recipe"] | {"ingredients": [name, "plain"], "weights": [0.5, 0.5], "fingerprints": ["1", "2"]}
    text = card({**report, "recipe": recipe, "benchmark": {"name": name, "note": ""}})
    assert "plain" in front(text)["base_model"]
    assert "<b>" not in text.split("---\n", 2)[2].split("```")[0]
    assert not {"\x1b", "\u202e"} & set(text)
