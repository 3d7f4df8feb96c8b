"""`merge=mergekit`: every method that mergekit has (TIES, DARE, ...), run by mergekit itself (extra `[mergekit]`).

Recipes also go from and to mergekit's YAML, for linear, task_arithmetic and slerp. mergekit's `linear` with
`normalize: true` (its default) divides once, at the end, by the fp32 sum of the raw fp32 weights: an import keeps the
raw weights and puts that sum into the recipe's `divisor`. An export says `normalize: false` where there is no divisor,
and asks for fp32 arithmetic.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from souping.checkpoints.checkpoint import Checkpoint, fingerprint
from souping.checkpoints.dtypes import TORCH_NAMES
from souping.core.files import staged, write_files
from souping.core.protocols import CandidatePool, Pourable, Progress, SoupPlan
from souping.core.types import Json, Missing, Recipe, UserError, Weights, number, part
from souping.merge import planner
from souping.merge.local import check_choice, common_dtype
from souping.merge.plan import MergePlan
from souping.merge.planner import Alignment
from souping.merge.pool import ModelMerge

if TYPE_CHECKING:
    import torch

FLAGS = ("--quiet", "--no-write-model-card", "--lazy-unpickle")
BASED = (
    "task_arithmetic", "ties", "dare_ties", "dare_linear", "breadcrumbs", "breadcrumbs_ties", "della", "della_linear",
    "model_stock", "sce", "slerp", "nearswap", "arcee_fusion", "ram", "ramplus_tl",
)  # fmt: skip
"""Methods of mergekit that refuse a configuration without a base model."""
OWN_FILES = ("mergekit_config.yml",)  # holds the folders' paths: the recipe is what travels


@dataclass(frozen=True, kw_only=True)
class MergekitPlan(SoupPlan):
    """Recipe as the YAML that mergekit will run."""

    recipe: Recipe
    yaml: str
    carrier: str

    def describe(self) -> str:
        return f"{self.recipe.method} soup {self.recipe.id} by mergekit:\n{self.yaml.rstrip()}"

    def to_json(self) -> str:
        table = {"recipe": self.recipe.as_dict(), "yaml": self.yaml, "carrier": self.carrier}
        return json.dumps(table, indent=2) + "\n"

    def save(self, path: Path) -> Path:
        path.write_text(self.to_json(), encoding="utf-8")
        return path


@dataclass(frozen=True, kw_only=True)
class MergekitMerge(ModelMerge[MergekitPlan | MergePlan]):
    """Soups made by mergekit in a process of its own.

    `method` is any of mergekit's `merge_method`s, `parameters` its global parameters (such as density, t, lambda);
    the recipe's weights become each model's `weight`. `command` starts mergekit where it lives in another
    environment, such as `/opt/mergekit/bin/mergekit-yaml`; by default it is looked for beside this Python.

    Raises:
        UserError: a value is out of its range; the message names `merge.<key>`.
    """

    method: str = "ties"
    parameters: dict[str, float | bool] | None = None
    base: str | None = None
    dtype: str | None = None
    command: str | None = None
    vocab: str = "error"
    allow_pickle: bool = False
    resident: str = "none"
    nonfinite: str = "error"

    def __post_init__(self) -> None:
        if not self.method or not isinstance(self.method, str):
            raise UserError(f"merge.method={self.method} must be the name of a method of mergekit")
        if self.dtype is not None:
            check_choice("dtype", self.dtype, tuple(TORCH_NAMES))
        check_choice("vocab", self.vocab, ("error",))
        check_choice("nonfinite", self.nonfinite, ("error", "warn"))
        check_choice("resident", self.resident, ("none", "cpu", "device"))
        if not all(isinstance(value, (int, float)) for value in (self.parameters or {}).values()):
            raise UserError(f"merge.parameters={self.parameters} must be numbers or true or false")

    def open(self, folders: Mapping[str, Path], cache: MutableMapping[str, str] | None = None) -> CandidatePool:
        """The pool of these candidates (a rebuild brings the base with it, so that it may be absent before).

        Raises:
            UserError: the method needs the base model and there is none, or as `open_pool`.
        """
        if self.method in BASED and not self.base:
            raise UserError(f"merge.method={self.method} needs the base model: set merge.base=FOLDER")
        return super().open(folders, cache)

    def recipe(
        self,
        ingredients: Sequence[str],
        weights: Weights,
        checkpoints: Mapping[str, Checkpoint],
        fingerprints: Mapping[str, str],
        base: str | None = None,
    ) -> Recipe:
        """The recipe of these weights; a single ingredient is that model, whatever the method."""
        used = [name for name, weight in zip(ingredients, weights, strict=True) if weight != 0]
        settings: dict[str, Json] = {"by": "mergekit", "parameters": dict(self.parameters or {})}
        if self.base:
            settings["base"] = base or fingerprint(Path(self.base), allow_pickle=self.allow_pickle)
        lone = len(used) == 1
        return Recipe(
            ingredients=tuple(ingredients),
            fingerprints=tuple(fingerprints[name] for name in ingredients),
            weights=tuple(float(weight) for weight in weights),
            dtype=self.dtype or common_dtype(checkpoints[name] for name in used),
            method="linear" if lone else self.method,
            settings={} if lone else settings,
        )

    def plan(self, recipe: Recipe, models: Mapping[str, Path] | Alignment) -> MergekitPlan | MergePlan:
        """The YAML of a recipe (a single ingredient is planned as a copy, without mergekit)."""
        if recipe.settings.get("by") != "mergekit":
            if isinstance(models, Alignment):
                return models.plan(recipe, nonfinite=self.nonfinite)
            return planner.plan(recipe, models, nonfinite=self.nonfinite, allow_pickle=self.allow_pickle)
        folders = models.folders if isinstance(models, Alignment) else models
        paths = {name: str(Path(folders[name]).expanduser().resolve()) for name in recipe.ingredients}
        document: dict[str, Json] = {
            "merge_method": recipe.method,
            "models": [
                {"model": paths[name], "parameters": {"weight": weight}}
                for name, weight in zip(recipe.ingredients, recipe.weights, strict=True)
            ],
            "parameters": dict(part(recipe.settings, "parameters")),
            "dtype": "float32",
        }
        if recipe.dtype in TORCH_NAMES:
            document["out_dtype"] = recipe.dtype
        if self.base:
            document["base_model"] = str(Path(self.base).expanduser().resolve())
        import yaml

        text = yaml.safe_dump(document, sort_keys=False)
        return MergekitPlan(recipe=recipe, yaml=text, carrier=paths[recipe.ingredients[0]])

    def write(
        self,
        plan: MergekitPlan | MergePlan,
        out: Path,
        progress: Progress | None = None,
        extra_files: Mapping[str, str] | None = None,
    ) -> Path:
        """Run mergekit into a staging folder, check the result's headers, and let it appear at `out`.

        Raises:
            UserError: mergekit is not installed, fails, or writes a checkpoint that cannot be trusted.
        """
        if isinstance(plan, MergePlan):
            from souping.merge.writer import write_checkpoint

            return write_checkpoint(plan, out, progress=progress, extra_files=extra_files)
        with staged(out) as stage:
            self._run(plan.yaml, stage)
            Checkpoint.open(stage)
            recipe = json.dumps(plan.recipe.as_dict(), indent=2) + "\n"
            write_files(stage, {"recipe.json": recipe, **(extra_files or {})})
        return Path(out)

    def live(self, models: Mapping[str, Checkpoint] | Alignment, module: torch.nn.Module) -> Pourable:
        """Pours by writing each soup to a temporary folder first."""
        return MergekitLive(self, models if isinstance(models, Alignment) else self.align(models), module)

    def needs(self) -> list[Missing]:
        """mergekit in this environment, unless a `command` names another one's."""
        if self.command is not None or importlib.util.find_spec("mergekit") is not None:
            return []
        return [Missing(what="the package mergekit", mends='pip install "souping[mergekit]"')]

    def _run(self, yaml: str, stage: Path) -> None:
        with tempfile.TemporaryDirectory(prefix="souping-") as folder:
            config = Path(folder) / "config.yml"
            config.write_text(yaml, encoding="utf-8")
            command = [*self._command(), str(config), str(stage), *FLAGS]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
            raise UserError(f"mergekit failed ({done.returncode}): {lines[-1][:300] if lines else 'it said nothing'}")
        for name in OWN_FILES:
            (stage / name).unlink(missing_ok=True)

    def _command(self) -> list[str]:
        if self.command is not None:
            program = shutil.which(os.path.expanduser(self.command))
            if program is None:
                raise UserError(f"merge.command={self.command} is not a program")
            return [program]
        if importlib.util.find_spec("mergekit") is None:
            raise UserError(
                "merge=mergekit needs mergekit: pip install 'souping[mergekit]', or set merge.command to the "
                "mergekit-yaml of another environment"
            )
        return [sys.executable, "-m", "mergekit.scripts.run_yaml"]


class MergekitLive(Pourable):
    """Live module that takes mergekit's soups."""

    def __init__(self, merge: MergekitMerge, models: Alignment, module: torch.nn.Module) -> None:
        self._merge, self._models, self._module = merge, models, module

    def pour(self, recipe: Recipe) -> None:
        """Write the soup, then pour that one checkpoint. Raises UserError as `MergekitMerge.write`."""
        from souping.merge.live import LiveModule

        with tempfile.TemporaryDirectory(prefix="souping-") as folder:
            out = self._merge.write(self._merge.plan(recipe, self._models), Path(folder) / "soup")
            soup = Checkpoint.open(out)
            alone = Recipe(ingredients=("soup",), fingerprints=("",), weights=(1.0,), dtype=soup.dtype)
            LiveModule({"soup": soup}, self._module, nonfinite=self._merge.nonfinite).pour(alone)


METHODS = ("linear", "task_arithmetic", "slerp")
KNOWN = {"models", "merge_method", "base_model", "dtype", "out_dtype", "parameters", "tokenizer_source"}


@dataclass(frozen=True, kw_only=True)
class Imported:
    """Content of a YAML: models as written in it, raw weights, and the settings a recipe needs.

    `dtype` is None where the ingredients' own is meant. `base` is the base model of task_arithmetic.
    """

    method: str
    models: tuple[str, ...]
    weights: tuple[float, ...]
    dtype: str | None = None
    base: str | None = None
    settings: Mapping[str, Json] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def recipe(self, fingerprints: Mapping[str, str], dtype: str, base: str = "") -> Recipe:
        """The recipe, with the content of each model by its name, the dtype where the YAML has none, and the base's."""
        settings = {**self.settings, **({"base": base} if self.base is not None else {})}
        return Recipe(
            ingredients=self.models,
            fingerprints=tuple(fingerprints[name] for name in self.models),
            weights=self.weights,
            dtype=self.dtype or dtype,
            method=self.method,
            settings=settings,
        )


def to_yaml(recipe: Recipe, folders: Mapping[str, Path | str], base: Path | str | None = None) -> str:
    """mergekit's YAML for a recipe; models are named by their folders.

    Raises:
        UserError: the method, vocabulary rule or per-pattern weights have no counterpart there.
    """
    if recipe.method not in METHODS:
        raise UserError(f"merge.method={recipe.method} has no export to mergekit: only {', '.join(METHODS)} have")
    for key in ("overrides", "vocab"):
        if key in recipe.settings:
            raise UserError(f"merge.{key} has no counterpart in mergekit's YAML: export a recipe without it")
    document = _document(recipe, [str(folders[name]) for name in recipe.ingredients], base)
    if recipe.dtype in TORCH_NAMES:
        document |= {"dtype": "float32", "out_dtype": recipe.dtype}
    import yaml

    text: str = yaml.safe_dump(document, sort_keys=False)
    return text


def _document(recipe: Recipe, paths: list[str], base: Path | str | None) -> dict[str, Json]:
    weighted: list[Json] = [
        {"model": p, "parameters": {"weight": w}} for p, w in zip(paths, recipe.weights, strict=True)
    ]
    if recipe.method == "slerp" and len(paths) == 2:
        t = recipe.weights[1] / sum(recipe.weights)
        models: list[Json] = [{"model": path} for path in paths]
        return {"merge_method": "slerp", "base_model": paths[0], "models": models, "parameters": {"t": t}}
    if recipe.method == "task_arithmetic":
        if base is None:
            raise UserError("merge.method=task_arithmetic needs the base model: set merge.base=FOLDER")
        settings = {"normalize": False, "lambda": number(recipe.settings.get("scale", 1.0))}
        return {"merge_method": "task_arithmetic", "base_model": str(base), "models": weighted, "parameters": settings}
    divisor = recipe.settings.get("divisor")
    if divisor is not None and divisor != fp32_sum(recipe.weights):
        raise UserError(f"the recipe's divisor {divisor} is not the sum of its weights, the only one mergekit knows")
    return {"merge_method": "linear", "models": weighted, "parameters": {"normalize": divisor is not None}}


def from_yaml(text: str) -> Imported:
    """Read mergekit's YAML.

    Raises:
        UserError: not YAML, or it uses what only mergekit itself can do (slices, gradients of parameters, LoRA models,
            other methods): those run with `merge=mergekit`.
    """
    document = _parse(text)
    method = document.get("merge_method")
    if method not in METHODS:
        raise UserError(f"mergekit's {method} is not imported, only {', '.join(METHODS)} are: use merge=mergekit")
    unknown = sorted(set(document) - KNOWN)
    if unknown:
        raise UserError(f"mergekit's {unknown[0]} is not imported: run this file with merge=mergekit")
    rows = document.get("models")
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise UserError("mergekit's YAML has no list of models")
    models = [_model(row.get("model")) for row in rows]
    parameters = _table(document.get("parameters"), "parameters")
    read = {"linear": _linear, "task_arithmetic": _task_arithmetic, "slerp": _slerp}[method]
    return read(document, models, [_table(row.get("parameters"), "parameters") for row in rows], parameters)


def _parse(text: str) -> dict[str, Json]:
    import yaml

    try:
        document = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"not a YAML file: {str(error).splitlines()[0][:150]}") from None
    if not isinstance(document, dict):
        raise UserError("not a mergekit YAML: it is no table")
    return document


def _model(value: Json) -> str:
    if isinstance(value, dict) and set(value) <= {"path", "model"}:
        value = value.get("path", value.get("model"))
    if not isinstance(value, str) or "+" in value.rsplit("/", 1)[-1]:
        raise UserError(f"mergekit's model {value} is not imported: only plain paths and names are")
    return value


def _table(value: Json, key: str) -> dict[str, Json]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError(f"mergekit's {key} must be a table, not {value}")
    return value


def _number(parameters: Mapping[str, Json], key: str, where: str, default: float | None = None) -> float:
    value = parameters.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UserError(f"mergekit's {key} of {where} is {value}, not one number: run this file with merge=mergekit")
    return float(value)


def _normalize(parameters: Mapping[str, Json], default: bool) -> bool:
    value = parameters.get("normalize", default)
    if isinstance(value, bool) or value in (0, 1):
        return bool(value)
    raise UserError(f"mergekit's normalize is {value}, neither true nor false")


def _dtype(document: Mapping[str, Json]) -> tuple[str | None, tuple[str, ...]]:
    """(dtype of the soup, notes)."""
    work, out = document.get("dtype"), document.get("out_dtype")
    for value in (work, out):
        if value is not None and value not in TORCH_NAMES:
            raise UserError(f"mergekit's dtype {value} is not imported: only {', '.join(TORCH_NAMES)} are")
    notes: tuple[str, ...] = ()
    if work in ("bfloat16", "float16"):
        notes = (f"mergekit casts models to {work} first; here they stay as stored and the sum is rounded once",)
    dtype = out or work
    return (str(dtype) if dtype else None), notes


def fp32_sum(weights: tuple[float, ...] | list[float]) -> float:
    """The sum that mergekit divides by: torch's fp32 sum of the fp32 weights."""
    import torch

    return float(torch.tensor([list(weights)], dtype=torch.float32).sum(dim=1)[0])


def _linear(
    document: Mapping[str, Json], models: list[str], rows: list[dict[str, Json]], parameters: Mapping[str, Json]
) -> Imported:
    weights = [_number({**parameters, **row}, "weight", m) for m, row in zip(models, rows, strict=True)]
    divisor = fp32_sum(weights) if _normalize(parameters, True) else 1.0
    if divisor == 0:
        raise UserError("mergekit's weights sum to zero and normalize is true: nothing to divide by")
    dtype, notes = _dtype(document)
    settings = {"divisor": divisor} if divisor != 1 else {}
    return Imported(
        method="linear", models=tuple(models), weights=tuple(weights), dtype=dtype, settings=settings, notes=notes
    )


def _task_arithmetic(
    document: Mapping[str, Json], models: list[str], rows: list[dict[str, Json]], parameters: Mapping[str, Json]
) -> Imported:
    base = _model(document.get("base_model"))
    pairs = [(m, {**parameters, **row}) for m, row in zip(models, rows, strict=True) if m != base]
    weights = [_number(row, "weight", m) for m, row in pairs]
    scale = _number(parameters, "lambda", "the merge", 1.0)
    if _normalize(parameters, False):
        scale /= sum(weights) if abs(sum(weights)) >= 1e-8 else 1.0
    dtype, notes = _dtype(document)
    return Imported(
        method="task_arithmetic",
        models=tuple(m for m, _ in pairs),
        weights=tuple(weights),
        dtype=dtype,
        base=base,
        settings={"scale": scale},
        notes=notes,
    )


def _slerp(
    document: Mapping[str, Json], models: list[str], rows: list[dict[str, Json]], parameters: Mapping[str, Json]
) -> Imported:
    base = _model(document.get("base_model"))
    others = [model for model in models if model != base]
    if len(others) != 1 or any(rows):
        raise UserError("mergekit's slerp is imported for a base and one other model, with one t for all")
    t = _number(parameters, "t", "the merge")
    dtype, notes = _dtype(document)
    return Imported(method="slerp", models=(base, others[0]), weights=(1 - t, t), dtype=dtype, notes=notes)
