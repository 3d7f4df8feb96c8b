"""`adapter_config.json`: what of it decides the adapter's product B*A, and what makes it no plain LoRA.

The rules are PEFT's own (LoraConfig and get_pattern_key): a module's rank and alpha are those of the first key of
rank_pattern and alpha_pattern that matches its name as `(.*\\.)?(key)$`, else `r` and `lora_alpha`; the product is
scaled by alpha / rank, or with use_rslora by alpha / sqrt(rank).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from souping.core import UserError
from souping.merge.checkpoint import inside, small
from souping.merge.header import broken, parse_json, shown

CONFIG = "adapter_config.json"
PLAIN = {
    "peft_type", "task_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "peft_version",
    "r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "bias",
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "init_lora_weights",
    "megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config", "qalora_group_size",
    "ensure_weight_tying", "modules_to_tie", "target_modules_to_tie", "runtime_config",
}  # fmt: skip
"""Keys that a plain LoRA may set. Any other key that is set makes the adapter something else."""
REASONS = {
    "use_dora": "DoRA scales each row by a norm that no sum of products has",
    "modules_to_save": "it carries whole modules beside its low-rank parts",
    "trainable_token_indices": "it carries trained token embeddings",
    "lora_bias": "it carries biases",
    "layer_replication": "its model has other layers than the base",
    "target_parameters": "it adapts parameters that are not a module's weight",
}
HARMLESS_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of init_lora_weights that leave the base's weights as they are."""
MAX_PATTERNS, MAX_PATTERN, MAX_WILD, MAX_OPTIONAL = 4_000, 500, 3, 8


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The part of an adapter's config that its numbers depend on, and what a soup carries over."""

    rank: int
    alpha: float
    rslora: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    transposed: bool
    base: str | None
    revision: str | None
    task_type: str | None
    auto_mapping: Any

    def rank_of(self, module: str) -> int:
        return self.rank_pattern.get(first_match(self.rank_pattern, module), self.rank)

    def scaling_of(self, module: str) -> float:
        """What PEFT multiplies the product B*A of this module with."""
        alpha = self.alpha_pattern.get(first_match(self.alpha_pattern, module), self.alpha)
        rank = self.rank_of(module)
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank


def first_match(patterns: Iterable[str], module: str) -> str:
    """The first pattern that matches a module's name, or that name itself, as PEFT's get_pattern_key."""
    return next((key for key in patterns if _compiled(key).match(module)), module)


@lru_cache(maxsize=2 * MAX_PATTERNS)
def _compiled(key: str) -> re.Pattern[str]:
    return re.compile(rf"(.*\.)?({key})$")


def read_settings(folder: Path) -> Settings:
    """Read and judge a folder's adapter_config.json.

    Raises:
        UserError: it is missing or broken, or asks for something that is not a plain LoRA; that is named.
    """
    path = inside(folder, CONFIG)
    config = parse_json(path, small(path))
    if not isinstance(config, dict):
        raise broken(path, f"{CONFIG} is not a JSON object")
    _refuse(folder, config)
    try:
        return _settings(path, config)
    except (TypeError, ValueError, KeyError) as error:
        raise broken(path, f"a setting has a wrong type ({shown(str(error))})") from None


def _refuse(folder: Path, config: Mapping[str, Any]) -> None:
    """Everything that is not a plain LoRA, by name."""
    kind = config.get("peft_type")
    if kind != "LORA":
        raise UserError(f"adapter {folder}: peft_type={shown(str(kind))}: only LORA adapters are souped.")
    bias = config.get("bias", "none")
    if bias not in ("none", None):
        raise UserError(f"adapter {folder}: bias={shown(str(bias))}: it trains biases too, only bias=none is souped.")
    start = config.get("init_lora_weights", True)
    if not any(start is known or start == known for known in HARMLESS_STARTS if isinstance(start, type(known))):
        raise UserError(
            f"adapter {folder}: init_lora_weights={shown(str(start))}: this start changes the base's weights. Save it "
            "again with PEFT's path_initial_model_for_weight_conversion."
        )
    odd = [key for key, value in config.items() if value and key not in PLAIN]
    if odd:
        key = next((key for key in REASONS if key in odd), odd[0])
        reason = REASONS.get(key, "that is no plain LoRA")
        raise UserError(
            f"adapter {folder}: {shown(key)}={shown(str(config[key]))[:40]}: {reason}; it cannot be souped."
        )


def _settings(path: Path, config: Mapping[str, Any]) -> Settings:
    texts = {key: config.get(key) for key in ("base_model_name_or_path", "revision", "task_type")}
    for key, value in texts.items():
        if value is not None and not isinstance(value, str):
            raise ValueError(key)
    return Settings(
        rank=_rank("r", config.get("r", 8)),
        alpha=_number("lora_alpha", config.get("lora_alpha", 8)),
        rslora=_flag("use_rslora", config),
        rank_pattern={key: _rank(key, value) for key, value in _patterns(path, config, "rank_pattern").items()},
        alpha_pattern={key: _number(key, value) for key, value in _patterns(path, config, "alpha_pattern").items()},
        transposed=_flag("fan_in_fan_out", config),
        base=texts["base_model_name_or_path"] or None,
        revision=texts["revision"],
        task_type=texts["task_type"],
        auto_mapping=config.get("auto_mapping"),
    )


def _flag(key: str, config: Mapping[str, Any]) -> bool:
    value = config.get(key) or False
    if not isinstance(value, bool):
        raise ValueError(key)
    return value


def _rank(key: str, value: object) -> int:
    if type(value) is not int or not 0 < value <= 1 << 20:
        raise ValueError(f"{key}={value}, a rank is a whole number above zero")
    return value


def _number(key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{key}={value}, not a finite number")
    return float(value)


def _patterns(path: Path, config: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A table of regular expressions, each small enough that no name makes it run for long."""
    table = config.get(key) or {}
    if not isinstance(table, dict) or len(table) > MAX_PATTERNS:
        raise ValueError(key)
    for pattern in table:
        wild, optional = len(re.findall(r"[*+{]", pattern)), pattern.count("?")
        if len(pattern) > MAX_PATTERN or wild > MAX_WILD or optional > MAX_OPTIONAL or re.search(r"\)[*+{]", pattern):
            raise broken(path, f"the pattern {shown(pattern)} of {key} is too complex to be tried on names")
        try:
            _compiled(pattern)
        except (re.error, RecursionError, OverflowError):
            raise broken(path, f"the pattern {shown(pattern)} of {key} is no regular expression") from None
    return table
