"""What a command line with a typo says: the key, its choice, and what to type, by the files of `conf/`."""

from __future__ import annotations

from pathlib import Path

import pytest

from souping.cli.advice import HINTS, joined_override, key_advice, owners
from tests.conftest import Cli, pool_of
from tests.support.composition import compose


def test_every_key_of_every_choice_is_known() -> None:
    config = compose(["+experiment=bfcl"])
    for group in ("pool", "selector", "optimiser", "evaluator", "merge"):
        for key in config[group]:
            assert key == "_target_" or f"{group}.{key}" in owners()
    assert set(owners()["selector.k"]) == {
        "selector=greedy",
        "selector=soce_cluster",
        "selector=topk",
    }
    # accelerate includes local
    assert "merge=accelerate" in owners()["merge.tokenizer_from"]
    assert set(owners()["analysis.shapley.max_models"]) == {"analysis=shapley"}


@pytest.mark.parametrize(
    ("words", "needles"),
    [
        ("pool=[ant,bee]", ["pool.candidates='[ant,bee]'"]),
        ("pool=ant", ["pool.candidates="]),
        ("candidates=[ant,bee]", ["pool.candidates"]),
        ("benchmark=items.jsonl", ["benchmark.path=items.jsonl"]),
        ("optimiser=[0.5,0.5]", ["optimiser=fixed", "optimiser.weights='[0.5,0.5]'"]),
        ("scores=table.csv", ["scores.path=table.csv"]),
        ("evaluator=lm_eval benchmark.path=a", ["benchmark.path", "evaluator=lm_eval"]),
        ("evaluator.tasks=gsm8k", ["evaluator.tasks", "evaluator=lm_eval"]),
        ("evaluator.task=gsm8k", ["evaluator.tasks", "evaluator=lm_eval"]),
        ("tasks=gsm8k", ["evaluator.tasks", "evaluator=lm_eval"]),
        ("evaluator.model=x", ["evaluator.model", "known keys"]),
        ("selector.k=2", ["selector.k", "selector=soce_cluster", "selector=topk"]),
        ("+selector.k=2", ["selector.k", "selector=soce_cluster"]),
        ("executor.gpus=1", ["executor=ray"]),
        ("analysis.shapley.max_models=3", ["analysis=shapley"]),
        ("optimser.trials=3", ["did you mean optimiser.max_trials?"]),
        ("optimser.nonsense=3", ["did you mean optimiser.nonsense?"]),
        ("optimser.max_trial=3", ["did you mean optimiser.max_trials?"]),
        ("evaluator.max_tokens=3", ["did you mean evaluator.max_new_tokens?"]),
        ("seed.x=3", ["did you mean seed?"]),
        ("benchmark=/data/items.jsonl", ["write benchmark.path=/data/items.jsonl"]),
        ("benchmark=data/items", ["write benchmark.path=data/items"]),
        ("weights=[0.5,0.5]", ["did you mean optimiser=fixed optimiser.weights?"]),
        ("optimiser=fixed weights=[0.5,0.5]", ["did you mean optimiser.weights?"]),
        ("merge weights=[0.5,0.5]", ["did you mean optimiser.weights?"]),
        ("merge merge.weights=[0.5,0.5]", ["did you mean optimiser.weights?"]),
        ("evaluator.limit=3", ["benchmark.limit", "dry_run"]),
        ("merge selector.k=2", ["+experiment=merge"]),
        ("seed = 3", ["write seed=3"]),
        ("optimiser.max_trials= 3", ["write optimiser.max_trials=3"]),
        ("pool.candidates=[a, b]", ["write 'pool.candidates=[a,b]'"]),
        ("benchmark.path items.jsonl", ["write benchmark.path=items.jsonl"]),
        ("items.jsonl", ["KEY=VALUE"]),
        ("name=x --min_gain 2", ["write min_gain=2"]),
        ("min_gain=2%", ["min_gain", "alone, 2"]),
        ("compare a=x b=y --margin 2%", ["--margin", "alone, 2"]),
        ("plan pool.candidates=[aunt,b,c] selector=all", ["aunt", "did you mean ant?"]),
        ("plan pool.candidates=[org/aunt,b,c] selector=all", ["did you mean org/ant?"]),
        ("plan pool.candidates=[ogr/ant,b,c] selector=all", ["did you mean org/ant?"]),
    ],
)
def test_a_typo_is_answered_with_what_to_type(
    words: str, needles: list[str], family: Path, souping: Cli, tmp_path: Path
) -> None:
    (tmp_path / "org").mkdir()
    for place in (tmp_path / "ant", tmp_path / "org/ant"):
        place.symlink_to(family / "ant", target_is_directory=True)
    given = words.split()
    if given[0] == "plan":
        given += pool_of(family)[1:]
    if given[0].startswith("+"):
        given += pool_of(family)
    souping(*given).refused(*needles)


TRIED = {
    "also": "extra_benchmarks",
    "base": "merge.base_model",
    "checkpoints": "pool.candidates",
    "dataset": "benchmark.path",
    "gate": "expected_mismatch",
    "items": "benchmark.path",
    "limit": "benchmark.limit or dry_run",
    "margin": "min_gain",
    "models": "pool.candidates",
    "output_dir": "out",
    "store.path": "store",
}


@pytest.mark.parametrize(("word", "keys"), TRIED.items())
def test_a_word_that_users_try_leads_to_the_key(word: str, keys: str, souping: Cli) -> None:
    for plus in ("", "++"):
        souping("pool=demo", f"{plus}{word}=3").refused(f"{word} ", f"did you mean {keys}?")


def test_every_hint_leads_to_keys_and_none_is_a_key_itself() -> None:
    root = compose(["+experiment=bfcl"])
    for word, keys in HINTS.items():
        assert word not in {*root, *owners()}
        assert all(key in root or key in owners() for key in keys)
    assert HINTS.keys() - TRIED.keys() == {"weights", "merge.weights"}


def test_a_name_of_the_hub_that_no_folder_resembles_is_left_to_the_plan(
    family: Path, souping: Cli
) -> None:
    words = ["pool.candidates=[org/model-a,org/model-b]", *pool_of(family)[1:], "selector=all"]
    done = souping("plan", *words)
    done.refused("org/model-a")
    assert "did you mean" not in done.err


def test_complete_overrides_are_never_joined() -> None:
    assert joined_override(["seed=3", "x"], "x") == ""
    assert joined_override(["a=1", "b", "c=2"], "b") == ""
    assert "optimiser.max_trials" in key_advice("max_trials", [])
