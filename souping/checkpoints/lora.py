"""Adapter folder, read from its headers: the factors A and B of each adapted module, their scaling, whole tensors.

The rules are PEFT's own: a module's alpha is that of the first key of alpha_pattern with which its name ends, else
`lora_alpha`; the product B*A is scaled by alpha / rank, or with use_rslora by alpha / sqrt(rank). The rank is that of
A. PEFT takes these keys for regular expressions; one that is more than a name is refused.

With `target_parameters`, factors belong to a parameter, of three dimensions if it holds all experts of a layer. Which
one it is cannot be read from an adapter alone: `souping.merge.parameters` asks the base.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
    is_head,
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
LORA_BIAS = "lora_B.bias"
FULL_MODEL = "full model"
"""What stands for a setting where a full model replaces a tensor."""
MAGNITUDE = "lora_magnitude_vector"
TOKENS = ".token_adapter.trainable_tokens_delta"
EXTRA = re.compile(rf"(?P<module>.+)\.(?P<extra>{re.escape(LORA_BIAS)}|{MAGNITUDE})(\.weight)?")
FACTOR = re.compile(
    rf"(?P<module>.+)\.(?P<side>{'|'.join(map(re.escape, (*LINEAR_FACTORS, *EMBEDDING_FACTORS)))})"
)


@dataclass(frozen=True)
class TargetedParameter:
    """Parameter in `target_parameters`, `tensor` of the base: [out, in], or of fused experts [experts, out, in].

    If `transposed`, it is [experts, in, out]. If the base stores each expert by itself, `tensor` has only dtype and
    shape; `pieces` are then the tensors of all experts, which follow each other in it.
    """

    name: str
    tensor: Tensor
    pieces: tuple[Tensor, ...] = ()
    transposed: bool = False

    @property
    def experts(self) -> int | None:
        return self.tensor.shape[0] if len(self.tensor.shape) == 3 else None


@dataclass(frozen=True)
class FactorPair:
    """One adapted module: A [rank, in] and B [out, rank], so that the product is scaling * B @ A.

    For an embedding, in is the vocabulary and the product is transposed when it is added to the weight. `magnitude`
    [out] is DoRA's: the length that each row of the sum gets. With a `target`, the factors are of a parameter. If that
    has experts, A is [experts * rank, in] and B is [out, rank * experts].
    """

    module: str
    embedding: bool
    a: Tensor
    b: Tensor
    scaling: float
    magnitude: Tensor | None = None
    target: TargetedParameter | None = None

    @property
    def parameter(self) -> str:
        """The parameter that the product is added to."""
        return self.target.name if self.target else f"{self.module}.weight"

    @property
    def experts(self) -> int | None:
        return self.target.experts if self.target else None

    @property
    def rank(self) -> int:
        return self.a.shape[0] // (self.experts or 1)

    @property
    def keys(self) -> tuple[str, str]:
        """Names of A and B in a file."""
        a, b = EMBEDDING_FACTORS if self.embedding else LINEAR_FACTORS
        return (f"{PEFT_PREFIX}{self.module}.{a}", f"{PEFT_PREFIX}{self.module}.{b}")


@dataclass(frozen=True)
class TrainedTensor:
    """A tensor that an adapter trains without factors.

    It replaces `parameter` of the base, or only its `rows` (`trainable_token_indices`). If it `adds` (`lora_bias`), it
    is added to the parameter, times `scaling`. `setting` is the setting by which PEFT trains it.
    """

    parameter: str
    tensor: Tensor
    setting: str
    scaling: float = 1.0
    adds: bool = False
    rows: tuple[int, ...] | None = None


@frozen
class Adapter:
    """LoRA folder whose headers were read and found sound.

    `parts` are {module or targeted parameter: its factors}, `trained` are tensors without factors. `copies` are
    {module: full weight} of the base that PEFT saved with the factors (embeddings): they have to be the base's own.
    `full` if it is a full model, which replaces all of the base.
    """

    checkpoint: Checkpoint
    settings: AdapterSettings
    parts: Mapping[str, FactorPair]
    trained: Sequence[TrainedTensor]
    copies: Mapping[str, Tensor]
    full: bool = False

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
        # What a full model left in the folder is not the adapter's.
        model_files = ("config.json", "generation_config.json")
        side = tuple(name for name in side_files(folder) if name not in model_files)
        checkpoint = Checkpoint.of(folder, tensors, config={}, side=side, before=before)
        sorter = _Sorter(folder, settings)
        for key, tensor in tensors.items():
            sorter.add(key, tensor)
        parts, trained = sorter.finish()
        return cls(
            checkpoint=checkpoint,
            settings=settings,
            parts=parts,
            trained=trained,
            copies=sorter.copies,
        )

    @classmethod
    def of_model(cls, folder: Path, allow_pickle: bool = False) -> Adapter:
        """A full model as one that replaces every tensor of the base (UserError: as `Checkpoint.open`, or sharded)."""
        checkpoint = Checkpoint.open(folder, allow_pickle)
        if checkpoint.assembly is not None:
            raise UserError(f"{folder} is sharded or FP8: write it in a float dtype first")
        trained = list[TrainedTensor]()
        for name, tensor in checkpoint.tensors.items():
            if tensor.dtype in FLOATS:
                trained.append(TrainedTensor(name, tensor, FULL_MODEL))
        # No adapter's settings apply: PEFT's defaults fill the field.
        settings = _settings_of(folder, {})
        return cls(
            checkpoint=checkpoint,
            settings=settings,
            parts={},
            trained=trained,
            copies={},
            full=True,
        )

    @property
    def folder(self) -> Path:
        return self.checkpoint.folder

    @property
    def has_tokenizer(self) -> bool:
        return bool({"tokenizer.json", "tokenizer_config.json"} & set(self.checkpoint.side))

    def fingerprint(self, base: str, cache: Cache) -> str:
        """SHA-256 (hex) over weights, what the config does to them, tokenizer, and `base`, the base's fingerprint."""
        if self.full:
            return fingerprint_of(self.checkpoint, cache)
        uses: list[list[Json]] = []
        settings = self.settings
        for pair in self.parts.values():
            rows = pair.a.shape[0]
            scaling = settings.scaling_of(pair.module, rows)
            use: list[Json] = [pair.module, pair.embedding, rows, scaling]
            if pair.magnitude is not None:
                use.append("use_dora")
            uses.append(use)
        if settings.parameters:
            # Ranks and scalings of these follow from the base's shapes: what they are computed from counts instead.
            rules = (settings.alpha, settings.rslora, settings.alpha_pattern)
            uses.append([*settings.parameters, *map(str, rules)])
        for part in self.trained:
            tokens = None if part.rows is None else list(part.rows)
            uses.append([part.parameter, part.setting, part.scaling, tokens])
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


class _Sorter:
    """Sorts an adapter's tensors by what they do. UserError for one that no supported setting explains."""

    def __init__(self, folder: Path, settings: AdapterSettings) -> None:
        self._folder = folder
        self._settings = settings
        # {module: {name of a factor: tensor}}, and the same of what only modules with factors have.
        self._sides: dict[str, dict[str, Tensor]] = {}
        self._extras: dict[str, dict[str, Tensor]] = {LORA_BIAS: {}, MAGNITUDE: {}}
        self._trained = list[TrainedTensor]()
        self.copies = dict[str, Tensor]()

    def add(self, key: str, tensor: Tensor) -> None:
        """Sort in the tensor of a `key` of the file. The order of the cases matters: several may fit its name.

        PEFT gives a module that it wraps the name `base_layer`.
        """
        name = key.removeprefix(PEFT_PREFIX)
        module, _, last = name.rpartition(".")
        factor = FACTOR.fullmatch(name)
        extra = EXTRA.fullmatch(name)
        if factor:
            self._sides.setdefault(factor["module"], {})[factor["side"]] = tensor
        elif extra and self._settings.extras[extra["extra"]]:
            self._extras[extra["extra"]][extra["module"]] = tensor
        elif name.endswith(TOKENS):
            module = name.removesuffix(TOKENS)
            rows = self._settings.rows_of(module, tensor, self._folder)
            self._train(f"{module}.weight", tensor, "trainable_token_indices", rows)
        # Parts of an adapter that are none of the above.
        elif "lora_" in name or "modules_to_save" in name:
            self._refuse_tensor(key)
        elif self._settings.saves(module) or (self._settings.ties and is_head(name)):
            self._train(name, tensor, "modules_to_save")
        elif last == "bias" and self._settings.bias != "none":
            self._train(f"{module.removesuffix('.base_layer')}.bias", tensor, "bias")
        elif last == "weight":
            self.copies[module.removesuffix(".base_layer")] = tensor
        else:
            self._refuse_tensor(key)

    def finish(self) -> tuple[dict[str, FactorPair], list[TrainedTensor]]:
        """({module: factors}, tensors without factors)."""
        if not self._sides and not self._trained:
            raise UserError(f"adapter {self._folder} holds no lora_A and lora_B: nothing to soup.")
        parts = dict[str, FactorPair]()
        magnitudes = self._extras[MAGNITUDE]
        for module, factors in sorted(self._sides.items()):
            pair = _factor_pair(self._folder, module, factors, self._settings)
            parts[module] = replace(pair, magnitude=magnitudes.get(module))
        # Where the settings ask for a bias or a magnitude, every module with factors has one, and no other module.
        for name, extras in self._extras.items():
            wanted = parts.keys() if self._settings.extras[name] else set[str]()
            for module in sorted(wanted ^ extras.keys()):
                self._broken(f"{name} of {shown(module)} is there without its factors, or missing")
            for module, tensor in extras.items():
                self._check(tensor, parts[module].b.shape[:1])
        for module, tensor in self._extras[LORA_BIAS].items():
            scaling = parts[module].scaling
            bias = TrainedTensor(f"{module}.bias", tensor, "lora_bias", scaling, adds=True)
            self._trained.append(bias)
        for name in self._settings.saved:
            if not any(_within(part.parameter, name) for part in self._trained):
                self._broken(f"modules_to_save names {shown(name)}, which has no tensor")
        return parts, sorted(self._trained, key=lambda part: (part.parameter, part.setting))

    def _train(
        self, parameter: str, tensor: Tensor, setting: str, rows: tuple[int, ...] | None = None
    ) -> None:
        self._check(tensor, tensor.shape)
        self._trained.append(TrainedTensor(parameter, tensor, setting, rows=rows))

    def _check(self, tensor: Tensor, shape: Sequence[int]) -> None:
        """Refuse a tensor of another shape, without elements or of a dtype that is no plain float."""
        if tensor.shape != tuple(shape) or 0 in shape or not shape or tensor.dtype not in FLOATS:
            self._broken(f"{shown(tensor.name)} is {tensor.dtype} {list(tensor.shape)}")

    def _broken(self, why: str) -> None:
        raise broken(self._folder / ADAPTER_WEIGHTS, why)

    def _refuse_tensor(self, key: str) -> None:
        raise UserError(
            f"adapter {self._folder}: {shown(key)} does not belong to its settings; it cannot be souped"
        )


def _within(parameter: str, module: str) -> bool:
    """Whether a parameter belongs to a module whose name ends with the text `module`, as PEFT compares names.

    The parameter `a.mlp.up.weight` is in the modules `a`, `a.mlp` and `a.mlp.up`.
    """
    owners = parameter.split(".")[:-1]
    return any(".".join(owners[: i + 1]).endswith(module) for i in range(len(owners)))


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
    "ensure_weight_tying", "modules_to_tie", "target_modules_to_tie", "runtime_config", "modules_to_save", "lora_bias",
    "use_dora", "trainable_token_indices", "target_parameters", "lora_B_layout", "unsloth_fused_expert_lora",
}  # fmt: skip
"""Keys that an adapter may set. Any other key that is set makes it one that cannot be souped."""
HARMLESS_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of init_lora_weights that leave the base's weights as they are."""
PACKED = "rank_major"
"""PEFT's order of the columns of B of several experts, by the name that Unsloth gives it."""
SETTING_TYPES = {
    "alpha_pattern": dict, "use_rslora": bool, "fan_in_fan_out": bool, "base_model_name_or_path": str, "revision": str,
    "task_type": str, "modules_to_save": list, "lora_bias": bool, "use_dora": bool,
    "trainable_token_indices": list | dict, "target_parameters": list, "rank_pattern": dict,
}  # fmt: skip
"""Types of settings, which may be absent."""
Rows = list[int]


@frozen
class AdapterSettings:
    """Settings of an adapter's config that its numbers depend on, and those that a soup carries over.

    `rslora` is `use_rslora`, `transposed` is `fan_in_fan_out`, `base` and `revision` name the base model. `saved` is
    `modules_to_save`, `ties` is `ensure_weight_tying`, by which PEFT saves a tied head too. `extras` are {tensor of a
    module with factors: whether there is one}, and `tokens` is `trainable_token_indices` as {end of a module's name:
    rows}. `parameters` is `target_parameters`, `ranks` are the ranks of factors, and `packed` says whether the config
    tells how factors of several experts are packed.
    """

    alpha: float
    rslora: bool
    alpha_pattern: Mapping[str, float]
    transposed: bool
    base: str | None
    revision: str | None
    task_type: str | None
    auto_mapping: Json
    bias: str
    saved: tuple[str, ...]
    ties: bool
    extras: Mapping[str, bool]
    tokens: Mapping[str, Rows]
    parameters: tuple[str, ...]
    ranks: tuple[Json, ...]
    packed: bool

    def scaling_of(self, module: str, rank: int) -> float:
        """PEFT's factor on the product B*A of a module, or of a targeted parameter: the first key that its name ends
        with sets alpha."""
        alpha = self.alpha
        for key, alpha_of_key in self.alpha_pattern.items():
            if f".{module}".endswith(f".{key}"):
                alpha = alpha_of_key
                break
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank

    def saves(self, module: str) -> bool:
        """Whether `modules_to_save` names a module or one around it."""
        # The empty text after the dot stands for the name of a parameter.
        return any(_within(f"{module}.", name) for name in self.saved)

    def rows_of(self, module: str, tensor: Tensor, folder: Path) -> tuple[int, ...]:
        """The rows of a module's weight that `tensor` replaces (UserError: not as many, or one twice)."""
        rows = next((rows for end, rows in self.tokens.items() if module.endswith(end)), [])
        if len(set(rows)) != tensor.shape[0] or len(rows) != tensor.shape[0]:
            why = f"it has {tensor.shape[0]} rows, and trainable_token_indices has {len(set(rows))}"
            raise broken(folder / ADAPTER_WEIGHTS, why, tensor.name)
        return tuple(rows)


def read_settings(folder: Path) -> AdapterSettings:
    """Read and check a folder's adapter_config.json.

    Raises:
        UserError: it is missing or broken, or sets something that a plain LoRA does not have.
    """
    path = inside(folder, CONFIG)
    config = json_object(path)
    _refuse_settings(folder, config)
    return _settings_of(path, config)


def _settings_of(path: Path, config: Mapping[str, Any]) -> AdapterSettings:
    """The settings in the config at `path` (UserError: one is of the wrong type)."""
    try:
        for key, kind in SETTING_TYPES.items():
            if not isinstance(config.get(key), kind | None):
                raise ValueError(f"{key}={config[key]}")
        # PEFT itself writes expressions that begin with `.*\.`, for experts that transformers fuses.
        alphas = {
            _name(key.removeprefix(r".*\.")): _number(key, value)
            for key, value in (config.get("alpha_pattern") or {}).items()
        }
        tokens = config.get("trainable_token_indices") or {}
        # A list is of the input embedding, whatever it is called.
        if isinstance(tokens, list):
            tokens = {"": tokens}
        return AdapterSettings(
            alpha=_number("lora_alpha", config.get("lora_alpha", 8)),
            rslora=bool(config.get("use_rslora")),
            alpha_pattern=alphas,
            transposed=bool(config.get("fan_in_fan_out")),
            base=config.get("base_model_name_or_path") or None,
            revision=config.get("revision"),
            task_type=config.get("task_type"),
            auto_mapping=config.get("auto_mapping"),
            bias=config.get("bias") or "none",
            saved=tuple(map(_name, config.get("modules_to_save") or ())),
            ties=bool(config.get("ensure_weight_tying")),
            extras={
                LORA_BIAS: bool(config.get("lora_bias")),
                MAGNITUDE: bool(config.get("use_dora")),
            },
            tokens={end: list(map(_row, rows)) for end, rows in tokens.items()},
            parameters=tuple(sorted(map(_name, config.get("target_parameters") or ()))),
            ranks=(config.get("r", 8), *(config.get("rank_pattern") or {}).values()),
            packed=bool(config.get("lora_B_layout")),
        )
    except (TypeError, ValueError, OverflowError) as error:
        raise broken(path, f"a setting is wrong ({shown(str(error))})") from None


def _refuse_settings(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse a config that is not of a plain LoRA, with the first key that shows it."""
    start = config.get("init_lora_weights", True)
    refused = list[str]()
    if config.get("peft_type") != "LORA":
        refused.append("peft_type")
    if config.get("bias", "none") not in ("none", None, "all", "lora_only"):
        refused.append("bias")
    # PEFT accepts True but not 1, and in Python the two are equal.
    if (type(start), start) not in [(type(value), value) for value in HARMLESS_STARTS]:
        refused.append("init_lora_weights")
    refused += [key for key, value in config.items() if value and key not in PLAIN_LORA]
    # Unsloth had an order of experts of its own before it wrote lora_B_layout.
    packed = "unknown" if "unsloth_fixed" in str(config.get("auto_mapping")) else PACKED
    packed = config.get("lora_B_layout") or packed
    if config.get("target_parameters") and packed != PACKED:
        refused.append("lora_B_layout")
    if not refused:
        return
    key = refused[0]
    value = shown(str(config.get(key)))[:40]
    hint = ""
    if key == "lora_B_layout":
        # Columns of B would be paired with other experts' rows of A.
        hint = " (Unsloth's order of experts, not PEFT's). Merge it with Unsloth, and use that model as a candidate"
    if key == "init_lora_weights":
        # The start changed the base, and the file does not say how.
        hint = ". Save it again with PEFT's path_initial_model_for_weight_conversion"
    raise UserError(
        f"adapter {folder}: {shown(key)}={value}: adapters with this setting cannot be souped{hint}"
    )


def _number(key: str, value: Json) -> float:
    """A value as a number (ValueError: it is not a finite number)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{key}={value}, not a finite number")
    return float(value)


def _row(value: Json) -> int:
    """A number of a row (ValueError: it is not one)."""
    if type(value) is not int or value < 0:
        raise ValueError(f"trainable_token_indices has {value}")
    return value


def _name(key: Json) -> str:
    """A name of modules. PEFT takes keys of `alpha_pattern` for regular expressions; ValueError for one."""
    if not isinstance(key, str) or not re.fullmatch(r"[\w.-]+", key):
        raise ValueError(f"{key} may be a regular expression: name the modules in full")
    return key
