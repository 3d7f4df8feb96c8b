"""`merge=mergekit`: every method that mergekit has (TIES, DARE, ...), run by mergekit itself (extra `[mergekit]`)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from souping.checkpoints.checkpoint import Checkpoint, Checkpoints
from souping.checkpoints.fingerprints import Cache, fingerprint
from souping.checkpoints.folder import Like, side_files
from souping.checkpoints.header import inside, small
from souping.core.fields import Name, Precision, Seed, component
from souping.core.folders import staged, write_files
from souping.core.reading import to_json
from souping.core.text import missing
from souping.core.types import Folders, Json, JsonObject, Missing, Recipe, UserError, frozen
from souping.core.weight_similarity import PoolSimilarity
from souping.merge import CandidatePool, Extra, LoadableModel, Nonfinite, OptionalProgress, SoupPlan
from souping.merge.alignment import Alignment, lone_recipe
from souping.merge.backend import MergeBackend
from souping.merge.local import open_pool
from souping.merge.mergekit_yaml import document_of, dump
from souping.merge.methods import check_interpolates
from souping.merge.plan import Ingredient, MergePlan, check_ingredients
from souping.merge.soup_files import RECIPE, generation_config, soup_files, write_soup_files
from souping.merge.writer import write_checkpoint

if TYPE_CHECKING:
    import torch

MERGEKIT_FLAGS = ("--quiet", "--no-write-model-card", "--lazy-unpickle")
BASED = (
    "task_arithmetic", "ties", "dare_ties", "dare_linear", "breadcrumbs", "breadcrumbs_ties", "della", "della_linear",
    "model_stock", "sce", "slerp", "nearswap", "arcee_fusion", "ram", "ramplus_tl",
)  # fmt: skip
"""Methods of mergekit that refuse a configuration without a base model."""
SIGNED = ("linear", "task_arithmetic", "dare_linear", "della_linear", "breadcrumbs")
"""Methods of mergekit that are sums, so that weights may be below 0. Others interpolate, or elect signs by weight."""
STOCHASTIC = ("dare_ties", "dare_linear", "della", "della_linear", "arcee_fusion")
"""Methods of mergekit that draw random numbers: their recipes hold the seed."""
FIXED = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "4", "MKL_NUM_THREADS": "4"}
"""Environment in which mergekit's sums have one order, whatever the machine."""


@frozen
class MergekitPlan(SoupPlan):
    """Recipe as the YAML that mergekit will run; `ingredients` (a base model last) as they were opened."""

    recipe: Recipe
    yaml: str
    ingredients: tuple[Ingredient, ...]

    def describe(self) -> str:
        return f"{self.recipe.method} soup {self.recipe.id} by mergekit:\n{self.yaml.rstrip()}"

    def save(self, path: Path, similarity: PoolSimilarity | None = None) -> Path:
        table: dict[str, Json] = {"recipe": self.recipe.as_dict(), "yaml": self.yaml}
        if similarity is not None:
            table["weights"] = to_json(similarity)
        path.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
        return path


@component
class MergekitMerge(MergeBackend):
    """Soups that mergekit makes in a separate process.

    `method` is any of mergekit's `merge_method`s, `parameters` its global parameters (such as density, t, lambda);
    the recipe's weights become each model's `weight`; `seed` is for the methods that draw random numbers. `python` is
    the interpreter of an environment with mergekit, such as `/opt/mergekit/bin/python`; the default is this one.

    Raises:
        UserError: a value is out of its range; the message names `merge.<key>`.
    """

    by = "mergekit"
    method: Name = "ties"
    parameters: dict[str, float | bool] | None = None
    base_model: str | None = None
    dtype: Precision | None = None
    python: str | None = None
    vocab: Literal["error"] = "error"
    allow_pickle: bool = False
    nonfinite: Nonfinite = "error"
    seed: Seed = 0

    def open(
        self, folders: Folders, cache: Cache = None, like: Like | None = None
    ) -> CandidatePool:
        """The pool of these candidates. Raises UserError if the method needs a base model and there is none."""
        if self.method in BASED and not self.base_model:
            raise UserError(
                f"merge.method={self.method} needs the base model: set merge.base_model=FOLDER"
            )
        return open_pool(self, folders, cache, like)

    def settings_of(self, used: Sequence[str], pool: Checkpoints, base: str | None) -> JsonObject:
        """As `MergeBackend.settings_of`: mergekit's parameters, the seed of methods that draw, and the base model."""
        settings: dict[str, Json] = {"by": self.by, "parameters": dict(self.parameters or {})}
        if self.method in STOCHASTIC:
            settings["seed"] = self.seed
        if self.base_model:
            settings["base"] = base or fingerprint(
                Path(self.base_model), allow_pickle=self.allow_pickle
            )
        return settings

    def plan(self, recipe: Recipe, models: Alignment) -> MergekitPlan | MergePlan:
        """The YAML of a recipe (a single ingredient is planned as a copy, without mergekit)."""
        if recipe.settings.get("by") != self.by:
            return models.plan(recipe, nonfinite=self.nonfinite)
        if recipe.method not in SIGNED:
            check_interpolates(recipe.method, recipe.weights)
        used = {name: models.checkpoints[name] for name in recipe.ingredients}
        if models.base is not None:
            used["the base"] = models.base
        for name, checkpoint in used.items():
            if checkpoint.assembly is not None or checkpoint.source != checkpoint.folder:
                raise UserError(
                    f"mergekit cannot read {name}, which is sharded, FP8 or one file: use merge=local"
                )
        ingredients = tuple(Ingredient(name, checkpoint) for name, checkpoint in used.items())
        return MergekitPlan(recipe=recipe, yaml=_yaml(recipe, ingredients), ingredients=ingredients)

    def write_soup(
        self,
        recipe: Recipe,
        models: Alignment,
        out: Path,
        progress: OptionalProgress = None,
        extra_files: Extra = None,
    ) -> Path:
        """Run mergekit into a staging folder, check the result's headers, and let it appear at `out`.

        Raises:
            UserError: mergekit is not installed, fails, or writes a checkpoint that cannot be trusted.
        """
        plan = self.plan(recipe, models)
        if isinstance(plan, MergePlan):
            return write_checkpoint(plan, out, soup_files(plan, extra_files), progress=progress)
        check_ingredients(plan.ingredients)
        with staged(out) as stage:
            self._run(plan, stage)
            Checkpoint.open(stage)
            text = json.dumps(plan.recipe.as_dict(), indent=2) + "\n"
            _carry(plan, stage)
            write_soup_files(stage, {RECIPE: text, **(extra_files or {})})
            check_ingredients(plan.ingredients)
        return Path(out)

    def live(self, models: Alignment, module: torch.nn.Module) -> LoadableModel:
        return MergekitLive(self, models, module)

    def needs(self) -> list[Missing]:
        """mergekit in this environment, unless `python` is another one's."""
        return missing("mergekit") if self.python is None else []

    def _run(self, plan: MergekitPlan, stage: Path) -> None:
        """Let mergekit write the model to `stage` (UserError with its last line: it failed)."""
        with tempfile.TemporaryDirectory(prefix="souping-") as folder:
            config = Path(folder) / "config.yml"
            config.write_text(plan.yaml, encoding="utf-8")
            seed = str(plan.recipe.settings.get("seed", 0))
            command = [
                self._interpreter(),
                "-m",
                "mergekit.scripts.run_yaml",
                str(config),
                str(stage),
                *MERGEKIT_FLAGS,
                "--random-seed",
                seed,
            ]
            environment = {**os.environ, **FIXED}
            process = subprocess.run(
                command, capture_output=True, text=True, errors="replace", env=environment
            )
        if process.returncode:
            output = process.stderr + process.stdout
            lines = [line for line in output.splitlines() if line.strip()]
            message = lines[-1][:300] if lines else "no message"
            raise UserError(f"mergekit failed ({process.returncode}): {message}")
        (stage / "mergekit_config.yml").unlink(missing_ok=True)  # it holds the folders' paths

    def _interpreter(self) -> str:
        """The Python that mergekit runs in (UserError: `merge.python` is not a program)."""
        if self.python is None:
            return sys.executable
        program = shutil.which(os.path.expanduser(self.python))
        if program is None:
            raise UserError(f"merge.python={self.python} is not a program")
        return program


def _yaml(recipe: Recipe, ingredients: Sequence[Ingredient]) -> str:
    """The YAML that mergekit runs. A base model is the last of `ingredients`, after those of the recipe."""
    folders = [ingredient.folder for ingredient in ingredients]
    document = document_of(recipe, folders)
    document |= {"parameters": dict(recipe.settings.get("parameters") or {}), "dtype": "float32"}
    if len(ingredients) > len(recipe.ingredients):
        document["base_model"] = folders[-1]
    return dump(document)


def _carry(plan: MergekitPlan, stage: Path) -> None:
    """Replace the tokenizer and templates in `stage` by the first ingredient's, with which soups are evaluated.

    mergekit copies the base model's. The generation config gets the end tokens of all ingredients.
    """
    first = plan.ingredients[0].checkpoint
    for name in set(side_files(stage)) - {"config.json"}:
        (stage / name).unlink()
    names = [name for name in first.side if name != "config.json"]
    write_files(stage, {name: small(inside(first.home, name)) for name in names})
    ingredients = plan.ingredients[: len(plan.recipe.ingredients)]
    homes = [ingredient.checkpoint.home for ingredient in ingredients]
    write_files(stage, generation_config(stage, homes))


class MergekitLive(LoadableModel):
    """Live module that takes mergekit's soups."""

    def __init__(self, merge: MergekitMerge, models: Alignment, module: torch.nn.Module) -> None:
        self._merge = merge
        self._models = models
        self._module = module

    def load_soup(self, recipe: Recipe) -> None:
        """Write the soup, then load that one checkpoint. Raises UserError as `MergekitMerge.write_soup`."""
        from souping.merge.live import LiveModule

        with tempfile.TemporaryDirectory(prefix="souping-") as folder:
            out = self._merge.write_soup(recipe, self._models, Path(folder) / "soup")
            soup = Checkpoint.open(out)
            models = Alignment({"soup": soup})
            live = LiveModule(models, self._module, nonfinite=self._merge.nonfinite)
            live.load_soup(lone_recipe("soup", soup.dtype))
