"""The soup's card: valid on the Hub, and a function of the recipe and the search alone."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from souping.report.cards import card
from tests.support.report import sample


def parts(**changes: Any) -> dict[str, Any]:
    report, _ = sample(columns=3)
    keys = ("experiment", "benchmark", "selection", "recipe", "objective", "folds")
    search = {"objective": 0.7622, "categories": {"simple_python": 0.8, "multiple": 0.7}, "items": 168}
    return {**{key: report[key] for key in keys}, "search": search, **changes}


def front(text: str) -> dict[str, Any]:
    _, matter, _ = text.split("---\n", 2)
    return yaml.safe_load(matter)


def test_the_front_matter_names_parents_tags_and_search_scores() -> None:
    matter = front(card(parts()))
    assert matter["base_model"] == parts()["recipe"]["ingredients"]
    assert matter["base_model_relation"] == "merge"
    assert matter["tags"] == ["merge", "souping"]
    assert matter["library_name"] == "transformers"
    (result,) = matter["model-index"][0]["results"]
    assert {m["name"]: m["value"] for m in result["metrics"]} == {
        "objective": 0.7622,
        "simple_python": 0.8,
        "multiple": 0.7,
    }
    assert "search fold" in result["dataset"]["name"]


def test_the_hubs_own_reader_takes_it() -> None:
    from huggingface_hub import ModelCard

    data = ModelCard(card(parts())).data
    assert data.base_model == parts()["recipe"]["ingredients"]
    assert [result.metric_value for result in data.eval_results] == [0.7622, 0.8, 0.7]


def test_it_tells_recipe_fingerprints_scores_and_how_to_rebuild() -> None:
    text = card(parts())
    recipe = parts()["recipe"]
    for name, weight, mark in zip(recipe["ingredients"], recipe["weights"], recipe["fingerprints"], strict=True):
        assert f"| {name} | {weight:.4g} | {mark[:16]} |" in text
    assert "| objective | 76.2 |" in text
    assert "pantry, BFCL-shaped, not BFCL" in text
    pool = ",".join(recipe["ingredients"])
    assert f"+experiment=rebuild recipe=recipe.json 'pool.candidates=[{pool}]'" in text
    assert "python -m souping +experiment=rebuild recipe=r.json" in card(
        parts(rebuild="python -m souping +experiment=rebuild recipe=r.json")
    )


def test_no_timing_no_report_fold_and_no_path_of_the_machine_enters() -> None:
    report, _ = sample(columns=3)
    early = card(parts())
    late = card({**parts(), **{k: report[k] for k in ("rows", "comparisons", "verdict", "cost", "stability")}})
    assert early == late
    recipe = parts()["recipe"] | {"ingredients": ["/home/me/models/a", "C:\\models\\b", "org/c"][:3]}
    text = card(parts(recipe=recipe | {"weights": [0.2, 0.3, 0.5], "fingerprints": ["1", "2", "3"]}))
    assert "/home" not in text
    assert "models" not in text.split("## Scores")[0].split("## Recipe")[1]
    assert front(text)["base_model"] == ["a", "b", "org/c"]


@pytest.mark.parametrize("name", ['a: "b"', "- x", "né à|ü", "<b>", "x\ny", "yes", "\U0001f372"])
def test_awkward_names_keep_the_yaml_valid(name: str) -> None:
    recipe = parts()["recipe"] | {"ingredients": [name, "plain"], "weights": [0.5, 0.5], "fingerprints": ["1", "2"]}
    changed = parts(
        recipe=recipe, benchmark={"name": name, "note": ""}, search={"objective": 0.5, "categories": {name: 1}}
    )
    text = card(changed)
    assert "plain" in front(text)["base_model"]
    assert "<b>" not in text.split("---\n", 2)[2].split("```")[0]


def test_a_single_model_is_called_one() -> None:
    report, _ = sample(k=1, columns=3)
    text = card({"recipe": report["recipe"]})
    assert "A copy of one model" in text
    assert "model-index" not in text
