"""`merge=mergekit`: every method that mergekit has (TIES, DARE, ...), run by mergekit itself (extra `[mergekit]`)."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from souping.core import Recipe, UserError, Weights
from souping.merge.backends import check_choice, common_dtype
from souping.merge.checkpoint import TORCH_NAMES, Checkpoint, fingerprint
from souping.merge.folder import staged, write_files
from souping.merge.layout import MergePlan
from souping.merge.plan import plan as plan_recipe

FLAGS = ("--quiet", "--no-write-model-card", "--lazy-unpickle")
OWN_FILES = ("mergekit_config.yml",)  # holds the folders' paths: the recipe is what travels


@dataclass(frozen=True, kw_only=True)
class MergekitPlan:
    """A recipe as the YAML that mergekit will run."""

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
class MergekitMerge:
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

    def recipe(
        self,
        ingredients: Sequence[str],
        weights: Weights,
        checkpoints: Mapping[str, Checkpoint],
        fingerprints: Mapping[str, str],
        cache: MutableMapping[str, str] | None = None,
    ) -> Recipe:
        """The recipe of these weights; a single ingredient is that model, whatever the method."""
        used = [name for name, weight in zip(ingredients, weights, strict=True) if weight != 0]
        settings: dict[str, Any] = {"by": "mergekit", "parameters": dict(self.parameters or {})}
        if self.base:
            settings["base"] = fingerprint(Path(self.base), cache, self.allow_pickle)
        lone = len(used) == 1
        return Recipe(
            ingredients=tuple(ingredients),
            fingerprints=tuple(fingerprints[name] for name in ingredients),
            weights=tuple(float(weight) for weight in weights),
            dtype=self.dtype or common_dtype(checkpoints[name] for name in used),
            method="linear" if lone else self.method,
            settings={} if lone else settings,
        )

    def plan(self, recipe: Recipe, folders: Mapping[str, Path]) -> MergekitPlan | MergePlan:
        """The YAML of a recipe (a single ingredient is planned as a copy, without mergekit)."""
        if recipe.settings.get("by") != "mergekit":
            return plan_recipe(recipe, folders, nonfinite=self.nonfinite, allow_pickle=self.allow_pickle)
        paths = {name: str(Path(folders[name]).expanduser().resolve()) for name in recipe.ingredients}
        document: dict[str, Any] = {
            "merge_method": recipe.method,
            "models": [
                {"model": paths[name], "parameters": {"weight": weight}}
                for name, weight in zip(recipe.ingredients, recipe.weights, strict=True)
            ],
            "parameters": dict(recipe.settings["parameters"]),
            "dtype": "float32",
        }
        if recipe.dtype in TORCH_NAMES:
            document["out_dtype"] = recipe.dtype
        if self.base:
            document["base_model"] = str(Path(self.base).expanduser().resolve())
        import yaml  # type: ignore[import-untyped, unused-ignore]

        text = yaml.safe_dump(document, sort_keys=False)
        return MergekitPlan(recipe=recipe, yaml=text, carrier=paths[recipe.ingredients[0]])

    def write(
        self,
        plan: MergekitPlan | MergePlan,
        out: Path,
        progress: Any = None,
        extra_files: Mapping[str, str] | None = None,
    ) -> Path:
        """Run mergekit into a staging folder, check the result's headers, and let it appear at `out`.

        Raises:
            UserError: mergekit is not installed, fails, or writes a checkpoint that cannot be trusted.
        """
        if isinstance(plan, MergePlan):
            from souping.merge.cook import cook

            return cook(plan, out, progress=progress, extra_files=extra_files)
        with staged(out) as stage:
            self._run(plan.yaml, stage)
            Checkpoint.open(stage)
            recipe = json.dumps(plan.recipe.as_dict(), indent=2) + "\n"
            write_files(stage, {"recipe.json": recipe, **(extra_files or {})})
        return Path(out)

    def live(self, checkpoints: Mapping[str, Checkpoint], module: Any) -> Any:
        """Pours by writing each soup to a temporary folder first."""
        return _Live(self, checkpoints, module)

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
            found = shutil.which(os.path.expanduser(self.command))
            if found is None:
                raise UserError(f"merge.command={self.command} is not a program")
            return [found]
        if importlib.util.find_spec("mergekit") is None:
            raise UserError(
                "merge=mergekit needs mergekit: pip install 'souping[mergekit]', or set merge.command to the "
                "mergekit-yaml of another environment"
            )
        return [sys.executable, "-m", "mergekit.scripts.run_yaml"]


class _Live:
    """A live module that takes mergekit's soups."""

    def __init__(self, merge: MergekitMerge, checkpoints: Mapping[str, Checkpoint], module: Any) -> None:
        self._merge, self._checkpoints, self._module = merge, checkpoints, module

    def pour(self, recipe: Recipe) -> None:
        """Write the soup, then pour that one checkpoint. Raises UserError as `MergekitMerge.write`."""
        from souping.merge.live import Live

        folders = {name: checkpoint.folder for name, checkpoint in self._checkpoints.items()}
        with tempfile.TemporaryDirectory(prefix="souping-") as folder:
            out = self._merge.write(self._merge.plan(recipe, folders), Path(folder) / "soup")
            soup = Checkpoint.open(out)
            alone = Recipe(ingredients=("soup",), fingerprints=("",), weights=(1.0,), dtype=soup.dtype)
            Live({"soup": soup}, self._module, nonfinite=self._merge.nonfinite).pour(alone)
