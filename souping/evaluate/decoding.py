"""Decoding: how tokens are picked from logits, and what a checkpoint's own generation_config would do.

Answers are greedy, or sampled so that each depends on (seed, item, number of the answer) and never on its neighbours in
a batch: every row has its own generator of Gumbel noise, which is added to the logits, and the largest sum is picked
(Gumbel 1954; the "Gumbel-max trick", Maddison, Tarlow and Minka 2014).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Interval

from souping.core.fields import Share, Temperature, component, load
from souping.core.types import Item, Json, UserError

if TYPE_CHECKING:
    import torch

IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
"""Keys of a generation_config that mark where a text begins and ends, and do not change how tokens are picked."""
SAMPLING = ("do_sample", "temperature", "top_p", "top_k", "min_p")
PENALTIES = (
    "repetition_penalty", "encoder_repetition_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size",
    "bad_words_ids", "sequence_bias", "suppress_tokens", "begin_suppress_tokens", "forced_bos_token_id",
    "forced_eos_token_id", "forced_decoder_ids", "min_length", "min_new_tokens", "exponential_decay_length_penalty",
    "guidance_scale", "num_beams", "penalty_alpha", "typical_p", "epsilon_cutoff", "eta_cutoff",
)  # fmt: skip
"""Keys that change which tokens are picked, beside those of sampling."""
NEUTRAL: Mapping[str, Json] = {
    "do_sample": False, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0, "min_length": 0,
    "min_new_tokens": 0, "num_beams": 1, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0,
}  # fmt: skip
"""Values that change nothing."""


@component
class Decoding:
    """Rule by which tokens are picked: greedy at temperature 0, otherwise sampled.

    Sampling is among the `top_k` likeliest tokens (0: all), those of them that make up `top_p`, and those of them that
    are at least `min_p` times as likely as the likeliest. `penalties` are further keys of a generation_config, which
    only `generation=model` fills.
    """

    temperature: Temperature = 0.0
    top_p: Share = 1.0
    top_k: Annotated[int, Interval(ge=0)] = 0
    min_p: Annotated[float, Interval(ge=0, le=1)] = 0.0
    seed: int = 0
    penalties: Mapping[str, Json] = field(default_factory=dict)

    @property
    def samples(self) -> bool:
        return self.temperature > 0

    def describe(self) -> str:
        rule = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k, "min_p": self.min_p}
        changes = {key: value for key, value in {**rule, **self.penalties}.items() if value != NEUTRAL.get(key)}
        return ", ".join(f"{key}={value}" for key, value in changes.items()) if self.samples or changes else "greedy"

    def seed_of(self, item: Item, replicate: int) -> int:
        """Seed of one answer, 63 bits."""
        text = f"{self.seed}\0{item.question}\0{replicate}".encode()
        return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


def check_sampling(temperature: float, samples: int, replicates: int) -> None:
    """Refuse several answers to an item that would all be the same (UserError)."""
    if samples > 1 and temperature == 0:
        raise UserError(f"evaluator.samples={samples} needs evaluator.temperature above 0: greedy answers are alike")
    if replicates > 1 and temperature > 0:
        raise UserError(f"evaluator.replicates={replicates} is for greedy answers: evaluator.samples={replicates}")


def combined(aggregate: str, scores: Sequence[float]) -> float:
    """An item's score from those of its answers: their `mean`, or with `pass` the best."""
    return max(scores) if aggregate == "pass" else fmean(scores)


def read_generation(folder: Path) -> dict[str, Json]:
    """The folder's generation_config.json; empty if there is none."""
    path = folder / "generation_config.json"
    table: dict[str, Json] = load(path, dict[str, Any]) if path.is_file() else {}
    return table


def generation_overrides(folder: Path) -> dict[str, Json]:
    """What a folder's generation_config changes compared with greedy decoding, {key: value}."""
    own = read_generation(folder)
    keys = PENALTIES + (SAMPLING if own.get("do_sample") else ())
    return {key: own[key] for key in keys if own.get(key) not in (None, NEUTRAL.get(key), [])}


def generation_notes(folders: Mapping[str, Path], instead: str = " (evaluator.generation=model does)") -> list[str]:
    """Notes on generation_configs that are not used; `instead` says what would use them."""
    notes = []
    for name, folder in folders.items():
        own = generation_overrides(folder)
        if own:
            listed = ", ".join(f"{key}={json.dumps(value)[:40]}" for key, value in own.items())
            notes.append(f"{name}: its generation_config sets {listed}; not used{instead}")
    return notes


def write_neutral(folder: Path, source: Path, ends: Sequence[int]) -> None:
    """Write a generation_config.json that holds nothing but the ids of `source` and the end tokens."""
    own = {key: value for key, value in read_generation(source).items() if key in IDS}
    ids = {**own, **({"eos_token_id": list(ends)} if ends else {})}
    path = folder / "generation_config.json"
    path.unlink(missing_ok=True)
    path.write_text(json.dumps(ids, indent=2), encoding="utf-8")


def common_decoding(folders: Mapping[str, Path], seed: int) -> Decoding:
    """Decoding that the generation_configs of all candidates set.

    Raises:
        UserError: they disagree, so that a soup has no decoding of its own.
    """
    first, *others = folders
    own = generation_overrides(folders[first])
    for name in others:
        other = generation_overrides(folders[name])
        key = next((key for key in (*own, *other) if own.get(key) != other.get(key)), None)
        if key is not None:
            raise UserError(
                f"evaluator.generation=model: {first} and {name} differ in {key} ({own.get(key)}, {other.get(key)}), "
                "so a soup of them has no decoding of its own: set evaluator.temperature and the like instead"
            )
    return Decoding(
        temperature=_number(own, "temperature", 1.0) if own.get("do_sample") else 0.0,
        top_p=_number(own, "top_p", 1.0),
        top_k=int(_number(own, "top_k", 0)),
        min_p=_number(own, "min_p", 0.0),
        seed=seed,
        penalties={key: value for key, value in own.items() if key not in SAMPLING},
    )


def _number(table: Mapping[str, Json], key: str, default: float) -> float:
    value = table.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"generation_config.json: {key} must be a number, not {value!r:.40}")
    return float(value)


Draw = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]
"""draw(token ids so far [R, T], logits [R, V]) -> logits whose arg max is the sampled token."""


def sampler(decoding: Decoding, seeds: Sequence[int], width: int) -> Draw:
    """Function that turns logits into a draw, for rows with these seeds whose prompts are `width` tokens wide. A draw
    depends on its answer's seed and on the number of tokens before it.
    """

    def draw(ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        import torch

        scores = keep_likely(logits.float() / decoding.temperature, decoding)
        generator, place = torch.Generator(device=scores.device), ids.shape[1] - width
        for row, seed in enumerate(seeds):
            generator.manual_seed((seed + place * 0x9E3779B97F4A7C15) % 2**63)
            noise = torch.empty_like(scores[row]).exponential_(generator=generator)
            scores[row] -= noise.clamp_min(1e-38).log()  # minus the log of an exponential is Gumbel's
        return scores

    return draw


def keep_likely(scores: torch.Tensor, decoding: Decoding) -> torch.Tensor:
    """Scores [R, V], minus infinity for tokens that `top_k`, `top_p` or `min_p` leave out."""
    from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    if decoding.top_k:
        scores = TopKLogitsWarper(decoding.top_k)(None, scores)  # type: ignore[arg-type]  # token ids are not used
    if decoding.top_p < 1:
        scores = TopPLogitsWarper(decoding.top_p)(None, scores)  # type: ignore[arg-type]
    if decoding.min_p > 0:
        scores = MinPLogitsWarper(decoding.min_p)(None, scores)  # type: ignore[arg-type]
    return scores
