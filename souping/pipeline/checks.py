"""Everything that a run refuses before any work: settings, items, candidates, and a machine that is too small.

A run stops at the first error, a plan shows them all. `refusals` needs the settings and the items, `check_pool` the
candidates' headers and tokenizers. Settings that contradict each other are refused before both, by
`execute.check_settings`. All sizes are bytes.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from souping.checkpoints.encodings import COMPARED_TEXTS
from souping.checkpoints.header import ITEM
from souping.checkpoints.layouts import rules_of
from souping.checkpoints.pool import ModelSize, base_of, largest_bytes, weigh
from souping.core.fields import pick
from souping.core.files import disk_space
from souping.core.protocols import Hosting, ModelHost
from souping.core.system import SHARED_MEMORY, cores, memory_bytes
from souping.core.text import human, named, shown
from souping.core.types import (
    CONSTANT,
    FOLDS,
    Candidate,
    Fold,
    Item,
    JsonObject,
    Missing,
    Names,
    SearchSpace,
    UserError,
    frozen,
)
from souping.core.unit import POINTS, Unit
from souping.evaluate.benchmark import Folds, limit_folds, shares_of, split_folds
from souping.pipeline.merge_only import check_kept
from souping.pipeline.models import OpenPool
from souping.pipeline.serving import scratch_place
from souping.pipeline.settings import RunSettings
from souping.pipeline.state import MIXED_ROWS
from souping.report.format import in_words
from souping.search.loop import check_budget
from souping.selection import check_drop

if TYPE_CHECKING:
    from souping.core.protocols import Evaluator
    from souping.core.types import ScoreMatrix
    from souping.merge import MergeBackend

EvaluatorItems = Sequence[tuple["Evaluator", Sequence[Item]]]
"""Evaluators with their items, the run's own first."""
LIKELY_CAUSES = (
    "are answers cut off, is the scorer wrong, do chat models get plain text in place of messages?"
)
"""What to look at if every model fails."""
PROGRAM = 1_500_000_000
"""Python, torch and transformers themselves, with the buffers of a soup that is mixed block by block."""


# ------------------------------------------------------------ settings, items and candidates


def refusals(
    settings: RunSettings, folds: Mapping[Fold, Sequence[Item]], evaluators: EvaluatorItems
) -> Iterator[UserError]:
    """What does not fit. `folds` and items are empty if the items are not available."""
    for check in _checks(settings, folds, evaluators):
        try:
            check()
        except UserError as error:
            yield error


def _checks(
    settings: RunSettings, folds: Mapping[Fold, Sequence[Item]], evaluators: EvaluatorItems
) -> Iterator[Callable[[], None]]:
    candidates = settings.pool.resolve()
    names = [candidate.name for candidate in candidates]
    run_items = itertools.chain.from_iterable(folds.get(fold, ()) for fold in FOLDS)
    categories = list(dict.fromkeys(item.category for item in run_items))
    # The run's own items were checked when the folds were cut.
    for _, items in evaluators[1:]:
        yield partial(check_texts, items)
    yield partial(_check_source, settings)
    if settings.stop_after != "select":
        yield partial(_check_names, names)
    yield partial(_check_expected, settings, names, categories)
    if categories:
        yield partial(_check_objective, settings, categories)
        yield partial(_check_goals, settings, categories, candidates)
        if settings.stop_after != "select":
            yield partial(check_budget, settings.optimiser, len(folds["search"]))
    yield partial(_check_selector, settings, names, categories)
    yield partial(_check_search, settings, tuple(names))
    for evaluator, _ in evaluators:
        yield partial(evaluator.prompts.check, names)


def check_pool(settings: RunSettings, pool: OpenPool, evaluators: EvaluatorItems) -> None:
    """Refuse candidates that cannot answer the items, soups that cannot be made, and a foreign soup in `out`."""
    if settings.pool.trajectory is not None:
        pool.check_runs(settings.pool.trajectory)
    check_tokenizers(pool, evaluators)

    def check(ingredients: Names) -> None:
        pool.merge_pool.plan(pool.uniform(ingredients))

    _check_sizes(settings, pool.names, check)
    check_kept(settings, pool)


def cut_folds(settings: RunSettings, items: Sequence[Item]) -> Folds:
    """Folds of the run's items (UserError: a text cannot be stored, or a category is too small)."""
    check_texts(items)
    folds = split_folds(
        items, two=settings.scores.published, shares=shares_of(settings.benchmark.folds)
    )
    if settings.limit is None:
        return folds
    return limit_folds(folds, settings.limit)


def check_texts(items: Sequence[Item]) -> None:
    """Refuse unpaired surrogates, which JSON can write and nothing can store or show (UserError)."""
    for item in items:
        try:
            texts = [item.id, item.category, item.group, item.prompt, item.answer, item.tools]
            json.dumps(texts, ensure_ascii=False, default=str).encode()
        except UnicodeEncodeError as error:
            half = shown(error.object[error.start])
            raise UserError(
                f"item {shown(item.id)} contains an unpaired surrogate ({half}): remove it"
            ) from None


def _check_names(names: Sequence[str]) -> None:
    """Refuse candidates with the name of a mixed model's row, whose scores and answers would replace theirs."""
    for name in names:
        if name in MIXED_ROWS:
            raise UserError(
                f"pool.candidates: {name} is the name of a row of the report: rename the candidate with "
                "{name: NAME, path: PATH}"
            )


def _check_objective(settings: RunSettings, categories: Sequence[str]) -> None:
    objective = settings.objective
    weights = objective.coefficients(categories)
    numbers = (
        isinstance(weights, np.ndarray)
        and weights.dtype.kind in "fiu"
        and weights.shape == (len(categories),)
    )
    if not (numbers and np.isfinite(weights).all() and weights.min() >= 0 and weights.max() > 0):
        raise UserError(
            f"objective {named(objective)} must give {len(categories)} coefficients of at least 0, and one above 0"
        )
    if not isinstance(objective.name, str):
        raise UserError(f"objective {named(objective)}: its name must be a text")


def _check_goals(
    settings: RunSettings, categories: Sequence[str], candidates: Sequence[Candidate]
) -> None:
    if settings.pareto and settings.optimiser.count(2) == 1:
        raise UserError(f"pareto needs a search: {named(settings.optimiser)} evaluates one soup")
    if settings.optimiser.scales and settings.merge.method != "task_arithmetic":
        raise UserError("optimiser.scales needs merge.method=task_arithmetic and merge.base=FOLDER")
    settings.goals_on(categories)
    settings.guards_on(categories)
    if settings.guard_reference(candidates) and not settings.guard:
        raise UserError(
            f"guard_against={settings.guard_against} needs guards, as in guard={{safety: 3}}"
        )


def _check_source(settings: RunSettings) -> None:
    """Refuse published scores, which are fractions of 1, for a run with scores of another unit."""
    if not settings.scores.published:
        return
    unit = settings.evaluator.unit
    if not unit.higher_is_better or unit.scale != POINTS.scale:
        raise UserError(
            f"scores={named(settings.scores)} has percent, this evaluator {unit.name}: use scores=evaluate"
        )


def _check_expected(settings: RunSettings, names: Sequence[str], categories: Sequence[str]) -> None:
    """Refuse names in `expected` that the pool or the benchmark does not have."""
    for expectation in settings.expected:
        candidate = pick(expectation.candidate, names, "expected: candidate")
        if expectation.category is not None and categories:
            pick(expectation.category, categories, f"expected.{candidate}: category")


def _check_selector(settings: RunSettings, names: Sequence[str], categories: Sequence[str]) -> None:
    """Rows and categories are the published table's, or the candidates and the items' own."""
    selector = settings.selector
    models = candidates = len(names)
    if settings.scores.published:
        scores = settings.scores.matrix(names, not_measured)
        categories = scores.categories
        models = len(scores.models)
        candidates = len(scores.candidates)
    if categories:
        check_drop(selector.drop, categories)
        selector.check(models, candidates, len(categories) - len(selector.drop))


def _check_search(settings: RunSettings, names: Names) -> None:
    """Refuse a search that has no point, or not the right number of weights."""

    def check(ingredients: Names) -> None:
        optimiser = settings.optimiser
        size = len(ingredients)
        optimiser.describe(size)
        if optimiser.known_points(size) is None and optimiser.count(size) == 1:
            optimiser.start(SearchSpace(ingredients=ingredients, candidates=names), settings.seed)

    _check_sizes(settings, names, check)


def _check_sizes(settings: RunSettings, names: Names, check: Callable[[Names], None]) -> None:
    """Refuse what is wrong with every possible number of ingredients; which candidates they are does not matter."""
    if settings.stop_after == "select":
        return
    last_error: UserError | None = None
    for size in settings.selector.sizes(len(names)):
        try:
            if size > 1:
                check(names[:size])
        except UserError as error:
            last_error = error
        else:
            return
    if last_error is not None:
        raise last_error


def check_tokenizers(pool: OpenPool, evaluators: EvaluatorItems) -> None:
    """Refuse candidates without a tokenizer, or without a chat template if items are messages (UserError)."""
    prompts = list(itertools.chain.from_iterable(items for _, items in evaluators))
    texts = [item.text for item in prompts[:: len(prompts) // COMPARED_TEXTS + 1]]
    pool.merge_pool.check_tokenizers(texts)
    for name in pool.names:
        folder = pool.merge_pool.tokenizer_folder(pool.recipe({name: 1.0}))
        for evaluator, items in evaluators:
            try:
                evaluator.prompts.check_tokenizer(folder, items)
            except UserError as error:
                raise error.at(f"candidate {name}") from error


def run_notes(settings: RunSettings, pool: OpenPool | None, folds: Folds | None) -> list[str]:
    """What a reader of the report must know before anything is evaluated; a plan may lack the pool or the items."""
    notes = []
    if pool is not None:
        notes += pool.warnings
        notes += pool.similarity.warnings if pool.similarity else []
    if settings.pool.trajectory is not None:
        notes += settings.pool.trajectory.notes
    items: list[Item] = []
    if folds is not None:
        for fold in FOLDS:
            items += folds.items[fold]
        notes += folds.notes
        notes += settings.objective.notes(list(dict.fromkeys(item.category for item in items)))
    if pool is not None:
        base = settings.merge.base
        if base and "shapley" in settings.analyses and not settings.base_candidate(pool.candidates):
            notes.append(
                f"shapley: merge.base={base} is not a candidate and is not evaluated: values are relative to the mean "
                "of the players alone; for values relative to the base, add it to pool.candidates"
            )
        notes += settings.evaluator.prompts.pool_notes(pool.folders)
        folder = pool.merge_pool.tokenizer_folder(pool.recipe({pool.names[0]: 1.0}))
        notes += settings.evaluator.prompts.prompt_notes(folder, items)
    return notes


def not_measured() -> ScoreMatrix:
    raise AssertionError("a published table needs no evaluation")


def flat_categories(unit: Unit, scores: ScoreMatrix) -> list[str]:
    """Warnings about categories in which all models score the same: nothing can be chosen by them."""
    notes = []
    for name in scores.constant:
        value = float(scores.values[0, scores.categories.index(name)])
        if abs(value) > CONSTANT:
            models = "both" if len(scores.models) == 2 else f"all {len(scores.models)}"
            how = f"{models} models score {unit.level(unit.raw(value))}"
        elif scores.published:
            how = "every model fails all of it"
        else:
            how = f"every model fails all of it ({LIKELY_CAUSES})"
        notes.append(
            f"category {name}: {how}, so it is left out of the selection; it stays in the objective"
        )
    return notes


# ------------------------------------------------------------ the machine


@frozen
class Gpu:
    """GPU that this process may use, with its memory."""

    name: str
    total: int


@frozen
class Machine:
    """Cores and memory that this process may use, and its GPUs."""

    cores: int
    memory: int
    gpus: tuple[Gpu, ...] = ()


def machine_facts() -> Machine:
    """This machine as it is now."""
    return Machine(cores=cores(), memory=memory_bytes(), gpus=gpus())


def gpus() -> tuple[Gpu, ...]:
    """NVIDIA GPUs that the driver lists and CUDA_VISIBLE_DEVICES leaves; a number that does not exist ends these."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(
            query, capture_output=True, text=True, timeout=20, check=True
        ).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return ()
    listed = []
    for line in lines:
        name, _, mebibytes = line.rpartition(",")
        if mebibytes.strip().isdigit():
            listed.append(Gpu(name=name, total=int(mebibytes) * 2**20))
    setting = os.environ.get("CUDA_VISIBLE_DEVICES")
    # UUIDs are left to the driver.
    if setting is None or re.search("[A-Z]", setting):
        return tuple(listed)
    visible = []
    for place in map(str.strip, setting.split(",")):
        if not place.isdigit() or int(place) >= len(listed):
            break
        visible.append(listed[int(place)])
    return tuple(visible)


@frozen
class Requirement:
    """`need` beside `have`, the total (of a disk: what is free). `parts` says what the need consists of, `fix` what to
    do if it does not fit."""

    kind: Literal["disk", "memory", "GPU memory"]
    where: str
    sizes: Mapping[str, int]
    have: int
    fix: str

    @property
    def need(self) -> int:
        return sum(self.sizes.values())

    @property
    def parts(self) -> list[str]:
        return [f"{what} {human(size)}" for what, size in self.sizes.items() if size]

    @property
    def fits(self) -> bool:
        return self.need <= self.have

    def as_dict(self) -> JsonObject:
        return {**asdict(self), "need": self.need, "fits": self.fits}

    def lack(self) -> Missing:
        need = f"{human(self.need)} ({', '.join(self.parts)})"
        what = f"{self.where} has {human(self.have)}, the run needs {need}"
        return Missing(what=what, fix=self.fix)


def requirements_of(
    run: RunSettings, models: Sequence[ModelSize], machine: Machine, evaluators: Sequence[Evaluator]
) -> list[Requirement]:
    """Everything that can be too small; nothing if no model's size is known."""
    if not any(model.nbytes for model in models):
        return []
    soup = largest_bytes(models, run.merge.dtype)
    place = scratch_place(soup)
    in_shared_memory = 0
    on_disk = 0
    written = ["folder"]
    if not run.merge.streams or any(model.adapter for model in models):
        written.append("chunks")
    if any(evaluator.hosting.model_form in written for evaluator in evaluators):
        if place == SHARED_MEMORY:
            in_shared_memory = soup
        else:
            on_disk = soup
    in_memory = {
        "program": PROGRAM,
        "one model": max((_in_memory(one, models, machine) for one in evaluators), default=0),
        f"a soup in {SHARED_MEMORY}": in_shared_memory,
    }
    memory = Requirement(
        kind="memory",
        where="this machine's memory",
        sizes=in_memory,
        have=machine.memory,
        fix="use a smaller evaluator.dtype, or a larger machine",
    )
    requirements = [*_disks(run, models, place, on_disk), memory]
    for evaluator in evaluators:
        if not _needs_gpu(evaluator.hosting, machine):
            continue
        gpu = _gpu(evaluator, models, machine)
        if gpu not in requirements:
            requirements.append(gpu)
    return requirements


def check_machine(run: RunSettings, evaluators: Sequence[Evaluator]) -> None:
    """Refuse, before a model is fetched or loaded, a run that cannot start or finish on this machine.

    Raises:
        UserError: a package is missing, a named server does not answer, there are too few GPUs, or a disk, the memory
            or a GPU is too small.
    """
    machine = machine_facts()
    if not run.executor.evaluates_here:
        evaluators = ()
    for lack in [*_packages(run, evaluators), *_missing_gpus(evaluators, machine)]:
        raise lack.error().at("this run cannot start here")
    models = model_sizes(run)
    # Opening the pool gives the better message.
    if any(model.trouble for model in models):
        return
    requirements = requirements_of(run, models, machine, evaluators)
    lacks = [requirement.lack() for requirement in requirements if not requirement.fits]
    if lacks:
        sentences = [lack.sentence() for lack in lacks[:2]]
        raise UserError("\n".join(sentences), fix=lacks[0].fix)


def model_sizes(run: RunSettings) -> list[ModelSize]:
    """Sizes of the candidates and, if there is one, of the base model."""
    pickle = run.merge.allow_pickle
    rules = rules_of(run.merge.names)
    models = [weigh(candidate, pickle, rules) for candidate in run.pool.resolve()]
    base = base_of(models, run.merge.base)
    if base is not None:
        models.append(weigh(Candidate(name="base model", path=Path(base)), pickle))
    return models


def soup_bytes(models: Sequence[ModelSize], merge: MergeBackend) -> int:
    """A soup on disk: as large as the largest candidate in the merge's dtype, or an adapter if adapters are kept."""
    if merge.adapters == "keep":
        models = [model for model in models if model.adapter] or models
    largest = max(models, key=lambda model: model.nbytes)
    if merge.dtype in ITEM:
        return largest.parameters * ITEM[merge.dtype]
    return largest.nbytes


@frozen
class DiskUse:
    """What is written below a folder; `key` sets the folder."""

    folder: Path
    what: str
    size: int
    key: str


def _disks(
    run: RunSettings, models: Sequence[ModelSize], place: Path, scratch: int
) -> Iterator[Requirement]:
    """Each file system that is written to: the soup, downloads, a soup that is served as a folder."""
    from huggingface_hub import constants

    soup = 0 if run.stop_after else soup_bytes(models, run.merge)
    downloads = sum(model.download for model in models)
    cache = Path(constants.HF_HUB_CACHE)
    uses = [
        DiskUse(folder=run.out, what="the soup", size=soup, key="out"),
        DiskUse(folder=cache, what="downloads", size=downloads, key="HF_HOME"),
        DiskUse(folder=place, what="a soup for the server", size=scratch, key="TMPDIR"),
    ]
    by_system: dict[int, list[DiskUse]] = {}
    for use in uses:
        if use.size:
            by_system.setdefault(disk_space(use.folder)[1], []).append(use)
    for group in by_system.values():
        places = " or ".join(f"{use.key}=FOLDER on a larger disk" for use in group)
        yield Requirement(
            kind="disk",
            where=f"the disk for {in_words([use.what for use in group])}",
            sizes={use.what: use.size for use in group},
            have=disk_space(group[0].folder)[0],
            fix=f"free some space, or set {places}",
        )


def on_gpu(hosting: Hosting, machine: Machine) -> bool:
    """Whether the loaded model is on a GPU."""
    return hosting.device.startswith("cuda") or (hosting.device == "auto" and bool(machine.gpus))


def _needs_gpu(hosting: Hosting, machine: Machine) -> bool:
    """Whether the loaded model, or the server of it, takes memory of a GPU."""
    if hosting.host is None:
        return on_gpu(hosting, machine)
    return bool(machine.gpus or hosting.host.gpus)


def _in_memory(evaluator: Evaluator, models: Sequence[ModelSize], machine: Machine) -> int:
    """Main memory of one evaluator's model; a model for a GPU passes through it when it is loaded."""
    hosting = evaluator.hosting
    host = hosting.host
    if host is None:
        return largest_bytes(models, hosting.module_settings().dtype)
    # vLLM and servers load shard by shard; without a GPU a server keeps the whole model.
    if hosting.model_form != "module" and machine.gpus:
        return 0
    return largest_bytes(models, host.dtype)


def _gpu(evaluator: Evaluator, models: Sequence[ModelSize], machine: Machine) -> Requirement:
    """A loaded model on one GPU, or a share of the model on each of several."""
    hosting = evaluator.hosting
    host = hosting.host or ModelHost(dtype=hosting.module_settings().dtype)
    gpus = max(1, host.gpus)
    where = "a GPU"
    model = "one model"
    if gpus > 1:
        where = f"each of {gpus} GPUs"
        model = f"one model over {gpus} GPUs"
    smallest = 0
    if len(machine.gpus) >= gpus:
        smallest = sorted(gpu.total for gpu in machine.gpus)[-gpus]
    fix = "nvidia-smi shows no GPU on this machine"
    if machine.gpus:
        fix = (
            "more GPUs: engine.tensor_parallel_size / server.tensor_parallel_size, or "
            "evaluator.dtype=bfloat16"
        )
    return Requirement(
        kind="GPU memory",
        where=where,
        sizes={f"{model}, beside its KV cache": -(-largest_bytes(models, host.dtype) // gpus)},
        have=int(host.fraction * smallest),
        fix=fix,
    )


def missing(
    run: RunSettings,
    models: Sequence[ModelSize],
    machine: Machine,
    evaluators: Sequence[Evaluator],
) -> list[Missing]:
    """Extras, environments, GPUs, models and a login, each once."""
    needs = _packages(run, evaluators)
    needs += run.tracker.needs()
    needs += _missing_gpus(evaluators, machine)
    needs += [Missing(what=model.trouble, fix=model.fix) for model in models if model.trouble]
    needs += _login(run)
    return once(needs)


def _packages(run: RunSettings, evaluators: Sequence[Evaluator]) -> list[Missing]:
    components = [*evaluators, *run.parts]
    return list(itertools.chain.from_iterable(component.needs() for component in components))


def once(needs: Iterable[Missing]) -> list[Missing]:
    """Each command once, and what has none once: several components may lack the same."""
    by_fix: dict[str, Missing] = {}
    for need in needs:
        by_fix.setdefault(need.fix or need.what, need)
    return list(by_fix.values())


def _missing_gpus(evaluators: Iterable[Evaluator], machine: Machine) -> Iterator[Missing]:
    count = len(machine.gpus)
    for evaluator in evaluators:
        host = evaluator.hosting.host
        device = evaluator.hosting.device
        if host is not None and host.url is None and host.gpus > count:
            yield Missing(what=f"GPUs: vLLM is set to use {host.gpus}, nvidia-smi shows {count}")
        number = re.fullmatch(r"cuda(?::(\d+))?", device)
        if number and int(number.group(1) or 0) >= count:
            yield Missing(what=f"a GPU: evaluator.device={device}, nvidia-smi shows {count}")


def _login(run: RunSettings) -> Iterator[Missing]:
    """An upload needs a token; reading public models does not."""
    from huggingface_hub import get_token

    if run.upload is not None and get_token() is None:
        yield Missing(what="a login to the Hub, which upload= needs", fix="hf auth login")
