"""Adapter folder, read from its headers: the factors A and B of each adapted module, and their scaling.

The rules are PEFT's own: a module's alpha is that of the first key of alpha_pattern with which its name ends, else
`lora_alpha`; the product B*A is scaled by alpha / rank, or with use_rslora by alpha / sqrt(rank). The rank is that of
A. PEFT takes these keys for regular expressions; one that is more than a name is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from souping.checkpoints.checkpoint import Checkpoint, stamps_in
from souping.checkpoints.fingerprints import Cache, fingerprint, fingerprint_of
from souping.checkpoints.folder import (
    INDEX,
    PICKLED,
    PICKLED_INDEX,
    SINGLE,
    Like,
    read_weights,
    side_files,
)
from souping.checkpoints.header import FLOATS, Tensor, broken, inside, json_object
from souping.core.files import expanded
from souping.core.text import listed, shown
from souping.core.types import Json, UserError, digest, frozen

ADAPTER_WEIGHTS = "adapter_model.safetensors"
PICKLED_ADAPTER_WEIGHTS = "adapter_model.bin"
PEFT_PREFIX = "base_model.model."
LINEAR_FACTORS = ("lora_A.weight", "lora_B.weight")
EMBEDDING_FACTORS = ("lora_embedding_A", "lora_embedding_B")
FACTOR = re.compile(
    rf"(?P<module>.+)\.(?P<side>{'|'.join(map(re.escape, (*LINEAR_FACTORS, *EMBEDDING_FACTORS)))})"
)


@dataclass(frozen=True)
class FactorPair:
    """One adapted module: A [rank, in] and B [out, rank], so that the product is scaling * B @ A.

    For an embedding, in is the vocabulary and the product is transposed when it is added to the weight.
    """

    module: str
    embedding: bool
    a: Tensor
    b: Tensor
    scaling: float

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    @property
    def keys(self) -> tuple[str, str]:
        """Names of A and B in a file."""
        a, b = EMBEDDING_FACTORS if self.embedding else LINEAR_FACTORS
        return (f"{PEFT_PREFIX}{self.module}.{a}", f"{PEFT_PREFIX}{self.module}.{b}")


@frozen
class Adapter:
    """LoRA folder whose headers were read and found sound.

    `parts` are {module: its factors}. `whole` are {module: full weight} of the base that PEFT saved with the factors
    (embeddings): they have to be the base's own.
    """

    checkpoint: Checkpoint
    settings: AdapterSettings
    parts: Mapping[str, FactorPair]
    whole: Mapping[str, Tensor]

    @classmethod
    def open(cls, folder: Path, allow_pickle: bool = False) -> Adapter:
        """Read a folder's config and headers.

        Raises:
            UserError: it is missing or broken, no plain LoRA, or pickled, and that is not allowed.
        """
        folder = expanded(folder)
        settings = read_settings(folder)
        before = stamps_in(folder)
        tensors = read_weights(folder, allow_pickle, (ADAPTER_WEIGHTS,), (PICKLED_ADAPTER_WEIGHTS,))
        # The config files of a full model say nothing about an adapter.
        model_files = ("config.json", "generation_config.json")
        side = tuple(name for name in side_files(folder) if name not in model_files)
        checkpoint = Checkpoint.of(folder, tensors, config={}, side=side, before=before)
        parts, full_weights = _sort(folder, tensors, settings)
        return cls(checkpoint=checkpoint, settings=settings, parts=parts, whole=full_weights)

    @property
    def folder(self) -> Path:
        return self.checkpoint.folder

    @property
    def has_tokenizer(self) -> bool:
        return bool({"tokenizer.json", "tokenizer_config.json"} & set(self.checkpoint.side))

    def fingerprint(self, base: str, cache: Cache) -> str:
        """SHA-256 (hex) over weights, what the config does to them, tokenizer, and `base`, the base's fingerprint."""
        uses: list[list[Json]] = []
        for pair in self.parts.values():
            uses.append([pair.module, pair.embedding, pair.rank, pair.scaling])
        return digest([base, sorted(uses), fingerprint_of(self.checkpoint, cache)])


def content(
    folder: Path,
    base: Json,
    cache: Cache = None,
    allow_pickle: bool = False,
    like: Like | None = None,
) -> str:
    """The fingerprint of a candidate: of an adapter over the base of fingerprint `base`, or of a full model.

    Raises:
        UserError: as Adapter.open, or as Checkpoint.open.
    """
    if is_adapter(folder):
        return Adapter.open(folder, allow_pickle).fingerprint(str(base), cache)
    return fingerprint(folder, cache, allow_pickle, like)


def open_model(folder: Path, allow_pickle: bool = False, like: Like | None = None) -> Checkpoint:
    """The headers of a model, or of an adapter folder (UserError as `Adapter.open` and `Checkpoint.open`)."""
    if is_adapter(folder):
        return Adapter.open(folder, allow_pickle).checkpoint
    return Checkpoint.open(folder, allow_pickle, like)


def is_adapter(folder: Path) -> bool:
    """Whether a folder is a PEFT adapter.

    Raises:
        UserError: it holds a full model's weights too.
    """
    folder = expanded(folder)
    if not (folder / CONFIG).is_file():
        return False
    full = [name for name in (SINGLE, INDEX, PICKLED, PICKLED_INDEX) if (folder / name).is_file()]
    if full:
        raise UserError(
            f"{folder} holds an adapter ({CONFIG}) and a full model ({full[0]}): move one of them away."
        )
    return True


def _sort(
    folder: Path, tensors: Mapping[str, Tensor], settings: AdapterSettings
) -> tuple[dict[str, FactorPair], dict[str, Tensor]]:
    """({module: factors}, {module: full weight}) of an adapter's tensors (UserError: one is neither)."""
    # {module: {name of a factor: tensor}}
    sides: dict[str, dict[str, Tensor]] = {}
    full_weights = dict[str, Tensor]()
    for key, tensor in tensors.items():
        name = key.removeprefix(PEFT_PREFIX)
        factor = FACTOR.fullmatch(name)
        if factor:
            sides.setdefault(factor["module"], {})[factor["side"]] = tensor
        elif name.endswith(".weight") and "lora_" not in name and "modules_to_save" not in name:
            full_weights[name.removesuffix(".weight").removesuffix(".base_layer")] = tensor
        else:
            raise UserError(
                f"adapter {folder}: {shown(key)} is not part of a plain LoRA; it cannot be souped"
            )
    if not sides:
        raise UserError(f"adapter {folder} holds no lora_A and lora_B: nothing to soup.")
    parts = dict[str, FactorPair]()
    for module, factors in sorted(sides.items()):
        parts[module] = _factor_pair(folder, module, factors, settings)
    return parts, full_weights


def _factor_pair(
    folder: Path, module: str, factors: Mapping[str, Tensor], settings: AdapterSettings
) -> FactorPair:
    """A and B of one module from {name of a factor: tensor} (UserError: they do not fit each other)."""
    path = folder / ADAPTER_WEIGHTS
    embedding = bool(factors.keys() & set(EMBEDDING_FACTORS))
    names = EMBEDDING_FACTORS if embedding else LINEAR_FACTORS
    if set(factors) != set(names):
        raise broken(path, f"it needs A and B, but has {listed(factors)}", module)
    a = factors[names[0]]
    b = factors[names[1]]
    matrices = len(a.shape) == len(b.shape) == 2
    if not matrices or a.shape[0] != b.shape[1] or 0 in (*a.shape, *b.shape):
        what = f"A {list(a.shape)} and B {list(b.shape)} are not matrices that fit each other"
        raise broken(path, what, module)
    if {a.dtype, b.dtype} - set(FLOATS):
        raise broken(
            path, f"A and B are {a.dtype} and {b.dtype}, not bfloat16, float16 or float32", module
        )
    return FactorPair(module, embedding, a, b, settings.scaling_of(module, a.shape[0]))


CONFIG = "adapter_config.json"
PLAIN_LORA = {
    "peft_type", "task_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "peft_version",
    "r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "bias",
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "init_lora_weights",
    "megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config", "qalora_group_size",
    "ensure_weight_tying", "modules_to_tie", "target_modules_to_tie", "runtime_config",
}  # fmt: skip
"""Keys that a plain LoRA may set. Any other key that is set makes the adapter something else."""
HARMLESS_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of init_lora_weights that leave the base's weights as they are."""
SETTING_TYPES = {
    "alpha_pattern": dict, "use_rslora": bool, "fan_in_fan_out": bool, "base_model_name_or_path": str, "revision": str,
    "task_type": str,
}  # fmt: skip
"""Types of settings, which may be absent."""


@frozen
class AdapterSettings:
    """Settings of an adapter's config that its numbers depend on, and those that a soup carries over.

    `rslora` is `use_rslora`, `transposed` is `fan_in_fan_out`, `base` and `revision` name the base model.
    """

    alpha: float
    rslora: bool
    alpha_pattern: Mapping[str, float]
    transposed: bool
    base: str | None
    revision: str | None
    task_type: str | None
    auto_mapping: Json

    def scaling_of(self, module: str, rank: int) -> float:
        """PEFT's factor on the product B*A of a module: the first key that the module's name ends with sets alpha."""
        alpha = self.alpha
        for key, alpha_of_key in self.alpha_pattern.items():
            if f".{module}".endswith(f".{key}"):
                alpha = alpha_of_key
                break
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank


def read_settings(folder: Path) -> AdapterSettings:
    """Read and check a folder's adapter_config.json.

    Raises:
        UserError: it is missing or broken, or sets something that a plain LoRA does not have.
    """
    path = inside(folder, CONFIG)
    config = json_object(path)
    _refuse(folder, config)
    try:
        for key, kind in SETTING_TYPES.items():
            if not isinstance(config.get(key), kind | None):
                raise ValueError(f"{key}={config[key]}")
        alphas = config.get("alpha_pattern") or {}
        return AdapterSettings(
            alpha=_number("lora_alpha", config.get("lora_alpha", 8)),
            rslora=bool(config.get("use_rslora")),
            alpha_pattern={_name(key): _number(key, value) for key, value in alphas.items()},
            transposed=bool(config.get("fan_in_fan_out")),
            base=config.get("base_model_name_or_path") or None,
            revision=config.get("revision"),
            task_type=config.get("task_type"),
            auto_mapping=config.get("auto_mapping"),
        )
    except (TypeError, ValueError, OverflowError) as error:
        raise broken(path, f"a setting is wrong ({shown(str(error))})") from None


def _refuse(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse a config that is not of a plain LoRA, with the first key that shows it."""
    start = config.get("init_lora_weights", True)
    refused = list[str]()
    if config.get("peft_type") != "LORA":
        refused.append("peft_type")
    if config.get("bias", "none") not in ("none", None):
        refused.append("bias")
    # PEFT accepts True but not 1, and in Python the two are equal.
    if (type(start), start) not in [(type(value), value) for value in HARMLESS_STARTS]:
        refused.append("init_lora_weights")
    refused += [key for key, value in config.items() if value and key not in PLAIN_LORA]
    if not refused:
        return
    key = refused[0]
    value = shown(str(config.get(key)))[:40]
    hint = ""
    if key == "init_lora_weights":
        hint = ". Save it again with PEFT's path_initial_model_for_weight_conversion"
    raise UserError(
        f"adapter {folder}: {shown(key)}={value}: only plain LoRA adapters can be souped{hint}"
    )


def _number(key: str, value: Json) -> float:
    """A value as a number (ValueError: it is not a finite number)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{key}={value}, not a finite number")
    return float(value)


def _name(key: str) -> str:
    """A key of `alpha_pattern`. PEFT takes it for a regular expression; ValueError if it is more than a name."""
    if not re.fullmatch(r"[\w.-]+", key):
        raise ValueError(
            f"alpha_pattern has the regular expression {key}: name the modules in full"
        )
    return key
