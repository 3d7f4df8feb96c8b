"""`merge=local`: the settings of a merge as one component."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from souping.checkpoints.checkpoint import Checkpoint, fingerprint
from souping.core.fields import Precision, component
from souping.core.protocols import Progress
from souping.core.types import Json, Recipe, UserError
from souping.merge import Adapters, Nonfinite, Pourable, Resident, Vocab
from souping.merge.methods import get_method, source
from souping.merge.plan import MergePlan, carried, parse_size
from souping.merge.planner import Alignment, check_overrides, fitted, plan
from souping.merge.pool import ModelMerge

if TYPE_CHECKING:
    import torch


@component
class LocalMerge(ModelMerge[MergePlan]):
    """Weighted averaging in this process.

    `dtype` is float32, bfloat16, float16, or None for the ingredients' own (the widest where they differ). `base` is
    the folder of the base model for task_arithmetic and model_stock, `scale` multiplies the differences to it.
    `overrides` gives tensors whose names match a pattern their own weights, in the pool's order. `carry` names the
    ingredient whose config and tokenizer the soup gets.

    Raises:
        UserError: a value is out of its range; the message names `merge.<key>`.
    """

    method: str = "linear"
    dtype: Precision | None = None
    vocab: Vocab = "error"
    nonfinite: Nonfinite = "error"
    allow_pickle: bool = False
    resident: Resident = "none"
    adapters: Adapters = "keep"
    max_shard_size: str | int = "5GB"
    overrides: dict[str, list[float]] | None = None
    num_processes: int | None = 1
    base: str | None = None
    scale: float = 1.0
    carry: str | None = None

    def __post_init__(self) -> None:
        method = get_method(self.method)
        parse_size(self.max_shard_size)
        if not method.base and self.scale != 1:
            raise UserError(f"merge.scale={self.scale} needs a method with a base, as merge.method=task_arithmetic")
        if method.base and not self.base:
            raise UserError(f"merge.method={self.method} needs the base model: set merge.base=FOLDER")
        if check_overrides(self.overrides or {}) and self.method != "linear":
            raise UserError(f"merge.overrides works with merge.method=linear only, not {self.method}")
        self._check_processes()

    @property
    def hashes_while_reading(self) -> bool:
        return self.base is None and self.num_processes == 1

    def _check_processes(self) -> None:
        if self.num_processes != 1:
            raise UserError(f"merge.num_processes={self.num_processes} needs merge=accelerate: merge=local has one")

    def settings_of(self, used: Sequence[str], pool: Sequence[str], base: str | None) -> dict[str, Json]:
        settings: dict[str, Json] = {}
        if own := source(self.method):
            settings["source"] = own
        if self.vocab != "error":
            settings["vocab"] = self.vocab
        if self.overrides:
            settings["overrides"] = fitted(self.overrides, pool, used)
        if self.base and get_method(self.method).base:
            settings["base"] = base or fingerprint(Path(self.base), allow_pickle=self.allow_pickle)
            settings["scale"] = float(self.scale)
        return settings

    def plan(self, recipe: Recipe, models: Mapping[str, Path] | Alignment) -> MergePlan:
        """The recipe worked out to the byte, from headers: of folders, or of models that are open and aligned.

        Raises:
            UserError: as `planner.plan`.
        """
        carry = carried(self.carry, recipe)
        if isinstance(models, Alignment):
            return models.plan(recipe, max_shard_size=self.max_shard_size, nonfinite=self.nonfinite, carry=carry)
        return plan(
            recipe,
            models,
            base=Path(self.base) if self.base else None,
            max_shard_size=self.max_shard_size,
            nonfinite=self.nonfinite,
            allow_pickle=self.allow_pickle,
            carry=carry,
        )

    def write(
        self, plan: MergePlan, out: Path, progress: Progress | None = None, extra_files: Mapping[str, str] | None = None
    ) -> Path:
        """The soup as a complete folder, which appears whole or not at all. Raises UserError as `write_checkpoint`."""
        from souping.merge.writer import write_checkpoint

        return write_checkpoint(plan, out, progress=progress, extra_files=extra_files)

    def live(self, models: Mapping[str, Checkpoint] | Alignment, module: torch.nn.Module) -> Pourable:
        """The open pool and a module that `pour(recipe)` fills, again and again."""
        from souping.merge.live import LiveModule

        aligned = models if isinstance(models, Alignment) else self.align(models)
        return LiveModule(aligned, module, resident=self.resident, nonfinite=self.nonfinite)
