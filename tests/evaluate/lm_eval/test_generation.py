"""Generation for the harness's tasks: decoded by the settings alone, each answer its own, and how it ended."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from souping.core.types import Record, UserError
from souping.evaluate.engines.transformers import load_module
from souping.evaluate.lm_eval import HarnessEvaluator
from tests.support import lm_eval_tasks

pytest.importorskip("lm_eval")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = lm_eval_tasks.make(tmp_path_factory.mktemp("tasks"))
    lines = [*lm_eval_tasks.WRITE[:4], "  until: []", "  max_gen_toks: 12"]
    sampled = ["  do_sample: true", "  temperature: 1.5"]
    lm_eval_tasks.put(folder, "free", lm_eval_tasks.rows(8, 8), [*lines, *lm_eval_tasks.WRITE[6:]])
    lm_eval_tasks.put(folder, "dice", lm_eval_tasks.rows(8, 8), [*lines, *sampled, *lm_eval_tasks.WRITE[6:]])
    return folder


@pytest.fixture(scope="module")
def free(folder: Path) -> HarnessEvaluator:
    return HarnessEvaluator(tasks=["free"], include_path=str(folder), device="cpu", threads=1)


def ask(own: HarnessEvaluator, served: Any, replicate: int = 0, only: slice = slice(None)) -> list[Record]:
    return own.evaluate(served, own.benchmark.items()[only], replicate)


def texts(records: Sequence[Record]) -> list[str]:
    return [record.output for record in records]


def test_nothing_of_a_models_own_generation_config_decodes(
    free: HarnessEvaluator, served: Any, family: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(family / "ant", tmp_path / "ant")
    path = folder / "generation_config.json"
    own = {"repetition_penalty": 5.0, "do_sample": True, "suppress_tokens": list(range(5, 40)), "max_length": 3}
    path.write_text(json.dumps({**json.loads(path.read_text()), **own}))
    other = SimpleNamespace(**{**vars(served), "module": load_module(folder, free.module_settings())})
    assert texts(ask(free, other)) == texts(ask(free, served))
    assert any("repetition_penalty=5.0" in note for note in free.pool_notes({"ant": folder}))


def test_a_tasks_own_penalties_count(free: HarnessEvaluator, served: Any) -> None:
    other = replace(free, gen_kwargs={"suppress_tokens": list(range(5, 40))})
    assert texts(ask(other, served)) != texts(ask(free, served))
    odd = replace(free, gen_kwargs={"custom_generate": "somebody/code", "trust_remote_code": True})
    with pytest.raises(UserError, match="generation_kwargs=custom_generate is not one of"):
        odd.benchmark.items()


def test_answers_end_at_any_end_token_and_say_so(free: HarnessEvaluator, served: Any) -> None:
    whole = ask(free, served)
    assert {record.outcome for record in whole} >= {"truncated"}
    long = next(record for record in whole if record.outcome == "truncated")
    assert len(long.tokens) == 12
    end = long.tokens[4]
    served.eos_token_ids = (end, 2)
    cut = {record.item: record for record in ask(free, served)}
    for record in whole:
        if end in record.tokens:
            own = cut[record.item]
            assert own.tokens == record.tokens[: record.tokens.index(end) + 1]
            assert own.outcome == "finished"
            assert record.output.startswith(own.output)


def test_a_stop_text_ends_a_row_and_no_other(free: HarnessEvaluator, served: Any) -> None:
    whole = ask(free, served)
    letter = whole[0].output[3]
    stopped = ask(replace(free, gen_kwargs={"until": [letter]}), served)
    for long, short in zip(whole, stopped, strict=True):
        assert short.output == long.output.split(letter)[0]
        assert short.tokens == long.tokens[: len(short.tokens)]
        assert (short.outcome == "finished") == (letter in long.output or long.outcome == "finished")
    assert len({len(record.tokens) for record in stopped}) > 1


def test_prompts_are_counted_and_those_that_are_cut_are_truncated(free: HarnessEvaluator, served: Any) -> None:
    whole = ask(free, served)
    lengths = [len(served.tokenizer(str(item.prompt))["input_ids"]) for item in free.benchmark.items()]
    assert [record.prompt_tokens for record in whole] == lengths
    assert len({record.prompt_key for record in whole}) == len(whole)
    limit = max(lengths) + 11
    cut = ask(replace(free, max_length=limit), served)
    reason = f"the prompt was cut on the left to fit the context of {limit} tokens"
    assert [r.reason for r in cut] == [reason if n == max(lengths) else "" for n in lengths]
    assert all(r.outcome == "truncated" for r in cut if r.reason)
    choices = ask(replace(free, tasks=["pick"], max_length=16), served)
    assert {r.outcome for r in choices if r.reason} == {"truncated"}
    assert {r.outcome for r in ask(replace(free, tasks=["pick"]), served)} == {"finished"}


def test_a_prompt_without_a_token_has_no_answer(folder: Path, free: HarnessEvaluator, served: Any) -> None:
    lines = [line.replace("{{question}}", "") for line in lm_eval_tasks.WRITE]
    lm_eval_tasks.put(folder, "mute", lm_eval_tasks.rows(2, 8), lines)
    for record in ask(replace(free, tasks=["mute"], add_bos_token=False), served):
        assert (record.outcome, record.reason) == ("unanswered", "the tokenizer makes no token of the prompt")
        assert (record.score, record.output) == (0.0, "")


class TestSampling:
    """An answer follows from (seed, item, replicate), not from what is asked with it."""

    @pytest.fixture
    def drawn(self, free: HarnessEvaluator) -> HarnessEvaluator:
        return replace(free, temperature=1.5, samples=3)

    def test_an_answer_is_its_own(self, drawn: HarnessEvaluator, free: HarnessEvaluator, served: Any) -> None:
        assert drawn.answers_per_item == 3
        first, second = ask(drawn, served), ask(drawn, served, 1)
        assert [record.replicate for record in second] == [1] * 8
        assert texts(first) != texts(second)
        assert texts(ask(drawn, served)) == texts(first)
        assert texts(ask(replace(drawn, batch_size=3), served)) == texts(first)
        assert texts(ask(drawn, served, 1, slice(2, 5))) == texts(second)[2:5]
        assert texts(ask(replace(drawn, sampling_seed=1), served)) != texts(first)
        for greedy in ({"top_k": 1}, {"top_p": 1e-6}):
            assert texts(ask(replace(drawn, **greedy), served)) == texts(ask(free, served))  # type: ignore[arg-type]

    def test_a_task_that_samples_by_itself_is_sampled_by_the_same_rule(
        self, drawn: HarnessEvaluator, served: Any
    ) -> None:
        import torch

        own = replace(drawn, tasks=["dice"], temperature=None)
        first = texts(ask(own, served))
        torch.manual_seed(7)
        assert texts(ask(replace(own, batch_size=3), served)) == first
        assert texts(ask(replace(own, top_k=1), served)) == texts(
            ask(replace(own, temperature=0.0, samples=None), served)
        )
        assert "seed" not in replace(own, temperature=0.0, samples=None).settings["decoding"]  # type: ignore[operator]

    def test_repeats_of_a_task_are_answers_of_their_own(
        self, folder: Path, drawn: HarnessEvaluator, served: Any
    ) -> None:
        text = (folder / "dice.yaml").read_text()
        (folder / "often.yaml").write_text(text.replace("task: dice", "task: often") + "repeats: 3\n")
        own = replace(drawn, tasks=["often"], temperature=None, samples=None)
        record = ask(own, served)[0]
        assert record.output.startswith('["')
        assert len(set(json.loads(record.output))) == 3

    def test_answers_become_a_score(self, drawn: HarnessEvaluator) -> None:
        item = drawn.benchmark.items()[0]
        given = [Record(item=item.id, score=s, output=o) for s, o in ((0.0, "a"), (1.0, "b"), (0.0, "a"))]
        for rule, score in (("mean", 1 / 3), ("pass", 1.0)):
            own = replace(drawn, aggregate=rule)  # type: ignore[arg-type]
            assert own.item_scores([item], [given]).tolist() == [pytest.approx(score)]
        assert replace(drawn, aggregate="pass").fingerprint == drawn.fingerprint

    def test_a_corpus_metric_takes_the_answers_that_count(self, drawn: HarnessEvaluator) -> None:
        own = replace(drawn, tasks=["translate"])
        items = own.benchmark.items()
        good, bad = (9.0, 9.0, *([9.0] * 8)), (9.0, 9.0, *([3.0] * 4), *([9.0] * 4))
        given = [
            [Record(item=i.id, score=s, output=o, statistics=row) for s, o, row in ((1.0, "x", good), (0.0, "y", bad))]
            for i in items
        ]
        best = replace(own, aggregate="pass").item_scores(items, given)
        assert best.mean() == pytest.approx(1.0)
        assert 0 < own.item_scores(items, given).mean() < 1


def test_greedy_replicates_are_in_other_batches(free: HarnessEvaluator) -> None:
    own = replace(free, replicates=2, batch_size=4, tasks=["free", "write", "pick"])  # type: ignore[arg-type]
    items = own.benchmark.items()
    assert own.answers_per_item == 2
    assert len(own.batches(items)[0]) == 2 * len(own.batches(items, 1)[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": ["pick"], "temperature": 0.5}, "pick compares likelihoods, .* leave out evaluator.temperature=0.5"),
        ({"tasks": ["free"], "samples": 2}, "free: evaluator.samples=2 needs evaluator.temperature above 0"),
        ({"tasks": ["dice"], "replicates": 2}, "dice: evaluator.replicates=2 is for greedy answers"),
        ({"tasks": ["dice"], "gen_kwargs": {"num_beams": 2}}, "dice: .*num_beams=2"),
        (
            {"tasks": ["dice"], "gen_kwargs": {"temperature": 1e9}},
            r"dice: .*temperature=.* at least 0",
        ),
    ],
)
def test_what_cannot_be_sampled(folder: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        HarnessEvaluator(**{"tasks": ["free"], **settings}, include_path=str(folder), device="cpu").benchmark.items()
