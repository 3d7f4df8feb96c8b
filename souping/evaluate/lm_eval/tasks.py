"""Tasks of the harness, loaded with their documents at hand, and the metric that scores each one's items.

A metric is a mean over items, or one of a corpus, which is kept as sufficient statistics of its items. A corpus metric
is f(S) with S the sum of the items' statistics s_i, and f does not depend on the scale of S. Item i's value is its
influence pseudo-value f(S) + n grad f(S) . (s_i - S/n), the infinitesimal jackknife's (Efron 1982, The Jackknife, the
Bootstrap and Other Resampling Plans, chapter 6): their mean is f(S), and their variance over n is the delta method's
variance of f(S), so that paired tests and bootstraps over items apply to BLEU as they do to accuracy.
"""

from __future__ import annotations

import fnmatch
import math
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from souping.core.fields import pick
from souping.core.files import expanded
from souping.core.types import FloatArray, Json, UserError
from souping.evaluate.lm_eval.errors import LogListener, not_loaded, require, silence, unknown
from souping.evaluate.lm_eval.generation import check_sampling_of
from souping.evaluate.lm_eval.settings import HarnessSettings, Spec
from souping.evaluate.lm_eval.task_files import Door, open_index

if TYPE_CHECKING:
    from lm_eval.api.task import Task
    from lm_eval.tasks import TaskManager
    from sacrebleu.metrics.base import Metric as CorpusMetric

Document = Mapping[str, Json]
Aggregation = Callable[[list[float]], float]
NEUTRAL = ("task_alias", "tag", "group", "dataset_kwargs", "metric_list", "filter_list")
"""Keys of a task that change no answer by themselves: names, where the data lies, and metrics that were not chosen."""

MEANS = ("mean", "nanmean")
SENTENCES = ("bleu", "chrf", "chrf++", "ter")
TABLES = ("f1", "matthews_corrcoef")
CORPUS = (*SENTENCES, *TABLES, "perplexity", "weighted_perplexity", "bits_per_byte")
TURNED = ("ter", "perplexity", "weighted_perplexity", "bits_per_byte")
"""Lower is better in the harness. TER is reported as 1 - TER, a perplexity P as 1 / P: the geometric mean of the
probability of a token, word or byte. Bits per byte b are 1 / 2^b, which is the same per byte."""
STEP = 1e-4
PUBLISHED: tuple[tuple[str, int, int], ...] = (
    (r"mgsm_\w+_[a-z]{2}", 250, 1),
    (r"flores36", 1012, 36),
    (r"infinitebench_longbook_qa_en", 351, 1),
    (r"infinitebench_longbook_choice_en", 229, 1),
    (r"infinitebench_longdialogue_qa_en", 200, 1),
)
"""(pattern of a task's name, documents of one leaf task, leaf tasks): MGSM, 250 problems a language (Shi et al. 2022);
FLORES-200's devtest, 1,012 sentences (NLLB Team 2022); infinite-Bench's tasks (Zhang et al. 2024, table 2)."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """Leaf task, the entry of `evaluator.tasks` it came with, its documents and the metric that scores them.

    `ids` are the documents in use. `shots` holds the few-shot examples of each document, drawn for all documents in
    their order from one seed, as a complete run of the harness draws them: an item's prompt never depends on which
    other items are evaluated beside it. `code` is what its file names as code, if it is no file of the harness's.
    """

    name: str
    entry: str
    task: Task
    docs: Sequence[Document]
    ids: Sequence[int]
    shots: Sequence[Sequence[Document]]
    metric: Metric
    code: tuple[str, ...] = ()

    @property
    def generates(self) -> bool:
        return bool(self.task.OUTPUT_TYPE == "generate_until")


def load(evaluator: HarnessSettings) -> dict[str, Loaded]:
    """{leaf task: its documents}, in the order of `evaluator.tasks`.

    Raises:
        UserError: a name is unknown (the nearest is given), a task's data is not there, or it cannot be scored here.
    """
    require()
    if not evaluator.tasks:
        raise UserError("evaluator.tasks is empty: name tasks, groups or YAML files, e.g. evaluator.tasks='[mytask]'")
    loaded: dict[str, Loaded] = {}
    with silence() as heard:
        seed(evaluator)
        manager, door = open_index(evaluator), Door(allow=evaluator.allow_code)
        door.watch(manager)
        for entry, spec in _expand(evaluator.tasks, manager):
            tasks = _build(manager, spec, heard)
            code = door.take()
            for name, task in tasks.items():
                if name in loaded:
                    raise UserError(f"evaluator.tasks: {name} is in {loaded[name].entry} and in {entry}")
                loaded[name] = _loaded(evaluator, name, entry, task, code)
    _check_named(evaluator, loaded)
    return loaded


def published_sizes(tasks: Sequence[Spec]) -> dict[str, int]:
    """{leaf task: documents} of tasks whose sizes are published; nothing where one of them is not known."""
    sizes: dict[str, int] = {}
    for task in tasks:
        known = next((row for row in PUBLISHED if isinstance(task, str) and re.fullmatch(row[0], task)), None)
        if known is None:
            return {}
        _, size, leaves = known
        sizes |= {str(task) if leaves == 1 else f"{task} {leaf}": size for leaf in range(1, leaves + 1)}
    return sizes


def seed(evaluator: HarnessSettings) -> None:
    """As simple_evaluate does before it loads tasks, some of which draw at random while they read their data."""
    random.seed(evaluator.random_seed)
    np.random.seed(evaluator.numpy_random_seed)


def _expand(tasks: Sequence[Spec], manager: TaskManager) -> Iterator[tuple[str, Spec]]:
    """(entry, name); a pattern (`mgsm_direct_*`) stands for the tasks that it matches, groups and tags left out."""
    for spec in tasks:
        if isinstance(spec, str) and set(spec) & set("*?["):
            names = fnmatch.filter(manager.all_subtasks, spec)
            if not names:
                raise UserError(f"evaluator.tasks: no task matches {spec}")
            yield from ((spec, name) for name in names)
        else:
            yield _title(spec), spec


def _title(spec: Spec) -> str:
    if isinstance(spec, dict):
        return str(spec.get("task") or spec.get("group") or "?")
    path = Path(spec)
    return path.stem if path.suffix in (".yaml", ".yml") else str(spec)


def _build(manager: TaskManager, spec: Spec, heard: LogListener) -> dict[str, Task]:
    """{leaf name: task} of one entry."""
    index, title = manager.task_index, _title(spec)
    if isinstance(spec, str) and spec not in index:
        if not expanded(spec).is_file():
            raise UserError(unknown(spec, manager.all_tasks, heard.skipped))
        spec = str(expanded(spec))
    elif isinstance(spec, dict) and spec.get("task") in index:  # a known task with keys of its own
        spec = {"group": title, "task": [spec]}
    try:
        tasks: dict[str, Task] = manager.load([spec])["tasks"]
    except UserError:
        raise
    except Exception as error:  # a task's YAML may run any code, and its data may be anywhere
        source = getattr(index.get(title), "yaml_path", None)  # lm_eval's
        raise UserError(not_loaded(title, source, error)) from error
    return tasks


def _loaded(evaluator: HarnessSettings, name: str, entry: str, task: Task, code: tuple[str, ...]) -> Loaded:
    try:
        return _load(evaluator, name, entry, task, code)
    except UserError:
        raise
    except Exception as error:  # the task's own code and data again, and the draw of its examples
        raise UserError(not_loaded(name, None, error)) from error


def _load(evaluator: HarnessSettings, name: str, entry: str, task: Task, code: tuple[str, ...]) -> Loaded:
    if getattr(task, "MULTIMODAL", False):  # lm_eval's
        raise UserError(f"evaluator.tasks: {name} needs images or sound, which souping does not give a model")
    unsafe = getattr(task, "UNSAFE_CODE", False)  # lm_eval's
    if unsafe and not evaluator.confirm_run_unsafe_code:
        raise UserError(
            f"evaluator.tasks: {name} runs code that the model writes: "
            "allow it with evaluator.confirm_run_unsafe_code=true"
        )
    _prepare(task, evaluator)
    generates = task.OUTPUT_TYPE == "generate_until"
    check_sampling_of(name, task.get_config("generation_kwargs") or {} if generates else None, evaluator)
    docs = list(task.eval_docs)
    return Loaded(
        name=name,
        entry=entry,
        task=task,
        docs=docs,
        ids=_ids(evaluator, name, docs),
        shots=_shots(task, docs, evaluator.fewshot_random_seed),
        metric=choose(name, task, _of(evaluator.metric, name, entry), _of(evaluator.filter, name, entry)),
        code=code,
    )


def _prepare(task: Task, evaluator: HarnessSettings) -> None:
    """The overrides that simple_evaluate applies: generation settings, and shots unless the task forbids them."""
    if evaluator.gen_kwargs and task.get_config("output_type") == "generate_until":
        task.set_config(key="generation_kwargs", value=dict(evaluator.gen_kwargs), update=True)
    own = task.get_config("num_fewshot")
    if evaluator.num_fewshot is not None and own != 0:
        task.set_config(key="num_fewshot", value=evaluator.num_fewshot)
    elif own is None:
        task.set_config(key="num_fewshot", value=0)


def _ids(evaluator: HarnessSettings, name: str, docs: Sequence[Document]) -> Sequence[int]:
    """The documents in use: all, those that `samples` lists, or `limit` of them: the first of each category in turn."""
    count = len(docs)
    if evaluator.documents is not None:
        ids = sorted(set(evaluator.documents.get(name, [])))
        if ids and not 0 <= ids[0] <= ids[-1] < count:
            raise UserError(f"evaluator.samples: {name} has documents 0 to {count - 1}, not {ids[-1]}")
        return ids
    if evaluator.limit is None:
        return range(count)
    first = math.ceil(count * evaluator.limit) if evaluator.limit < 1 else int(evaluator.limit)
    column, turns, seen = evaluator.category.removeprefix("column:"), list[tuple[int, int]](), Counter[str]()
    for number, doc in enumerate(docs):
        category = str(doc.get(column)) if column != evaluator.category else ""
        turns.append((seen[category], number))
        seen[category] += 1
    return sorted(number for _, number in sorted(turns)[:first])


def _shots(task: Task, docs: Sequence[Document], seed: int | None) -> Sequence[Sequence[Document]]:
    """Few-shot examples of every document, as one pass of the harness over all documents draws them."""
    task.set_fewshot_seed(seed=seed)
    number = task.get_config("num_fewshot") or 0
    if not number or not hasattr(task, "sampler"):  # lm_eval's
        return [()] * len(docs)
    same = task.fewshot_cfg.split == task.config.test_split
    return [list(task.sampler.sample(n=number, eval_doc=doc if same else None)) for doc in docs]


def _of(setting: str | Mapping[str, str] | None, name: str, entry: str) -> str | None:
    """A setting that is one for all tasks, or a mapping by task or entry."""
    if isinstance(setting, Mapping):
        value = setting.get(name, setting.get(entry))
        return None if value is None else str(value)
    return None if setting is None else str(setting)


def _check_named(evaluator: HarnessSettings, loaded: Mapping[str, Loaded]) -> None:
    known = {*loaded, *(one.entry for one in loaded.values())}
    for key in ("metric", "filter", "samples"):
        setting = getattr(evaluator, key)
        for name in setting if isinstance(setting, Mapping) else ():
            pick(name, sorted(known), f"evaluator.{key}: task")


@dataclass(frozen=True, kw_only=True)
class Metric:
    """`kind` is `mean`, or the corpus metric's name in `corpus.CORPUS`; `settings` is the task's own entry for it."""

    name: str
    filter: str
    kind: str
    settings: Mapping[str, Json]

    @property
    def scorer(self) -> str:
        """The harness's own name of a metric after a filter."""
        return f"{self.name},{self.filter}"

    def take(self, sample: Mapping[str, Any], where: str) -> tuple[float, tuple[float, ...]]:
        """(score, sufficient statistics) of one logged sample; a mean has no statistics.

        Raises:
            UserError: the sample has no value for this metric, or one that is not a number.
        """
        if self.name not in sample:
            given = ", ".join(sample["metrics"]) or "nothing"
            raise UserError(f"{where} has no value for metric {self.name} (it has {given}): choose evaluator.metric")
        value = sample[self.name]
        if self.kind != "mean":
            return measure(self.kind, value, where)
        try:
            score = float(value)
        except (TypeError, ValueError):
            score = math.nan
        if not math.isfinite(score):
            raise UserError(f"{where}: metric {self.name} is {value!r:.60}, not a number: choose evaluator.metric")
        return score, ()


def choose(name: str, task: Task, metric: str | None, filter_: str | None) -> Metric:
    """The metric and filter that were asked for, or the first metric that can be maximised and the first filter.

    A metric can be maximised if it is a mean over items and higher is better, or one of `corpus.CORPUS`.

    Raises:
        UserError: there is none, or the one asked for is unknown or cannot be used.
    """
    kinds = {m: _kind(task, m) for m in task.aggregation()}
    usable = [m for m, kind in kinds.items() if not kind.startswith("!")]
    if metric is None:
        if not usable:
            why = "; ".join(f"{m} {kind[1:]}" for m, kind in kinds.items()) or "it declares none"
            raise UserError(f"evaluator.tasks: {name} has no metric to maximise: {why}")
        metric = usable[0]
    elif metric not in kinds and not _open(task):
        pick(metric, kinds, f"task {name}: evaluator.metric")
    kind = kinds.get(metric, "mean")
    if kind.startswith("!"):
        other = f"; it also has {', '.join(usable)}" if usable else ""
        raise UserError(f"evaluator.metric={metric} of task {name} {kind[1:]}{other}")
    return Metric(name=metric, filter=_filter(name, task, filter_), kind=kind, settings=_settings(task, metric))


def _kind(task: Task, metric: str) -> str:
    """`mean`, a corpus metric's name, or `!` and why it cannot be used."""
    higher = task.higher_is_better().get(metric)
    aggregation = task.aggregation()[metric]
    name = _aggregation(aggregation)
    if name == "bypass":
        return "!gives no score"
    if name in CORPUS:
        return name
    if name not in MEANS and not _is_mean(aggregation):
        return f"!is aggregated by {name}, which is no mean of items and none of {', '.join(CORPUS)}"
    return "mean" if higher is not False else "!is better when lower, and souping maximises"


def _aggregation(function: Aggregation) -> str:
    from lm_eval.api.registry import AGGREGATION_REGISTRY

    for name, registered in AGGREGATION_REGISTRY.items():
        if registered is function:
            return str(name)
    return str(getattr(function, "__name__", type(function).__name__))  # a task's own


def _is_mean(function: Aggregation) -> bool:
    """A task's own aggregation that gives the mean of whatever numbers it is given."""
    try:
        return all(
            abs(function(list(values)) - sum(values) / len(values)) < 1e-9
            for values in ((0.25, 1.0, 0.0, 0.5), (1.0, 0.0), (0.125, 0.75, 0.5))
        )
    except Exception:  # it is the task's own code, and not made for such values
        return False


def _open(task: Task) -> bool:
    """Whether the task may give values under names that it does not declare: by its own code, or pass@k."""
    functions = getattr(task, "_metric_fn_list", {}).values()  # lm_eval's
    return callable(task.get_config("process_results")) or any(
        (f.__module__ or "").split(".")[0] != "lm_eval" for f in functions
    )


def _filter(name: str, task: Task, wanted: str | None) -> str:
    names = [str(f.name) for f in getattr(task, "_filters", [])] or ["none"]  # lm_eval's
    if wanted is None:
        return names[0]
    return pick(wanted, names, f"task {name}: evaluator.filter")


def _settings(task: Task, metric: str) -> Mapping[str, Json]:
    for entry in task.get_config("metric_list") or []:
        own = entry.get("metric")
        if own == metric or getattr(own, "__name__", None) == metric:  # a function of the task's own
            return dict(entry)
    return {}


def measure(kind: str, value: Any, where: str) -> tuple[float, tuple[float, ...]]:
    """(score, statistics) of one item; the score is that of a corpus of this item alone.

    Raises:
        UserError: the task's value for this metric is not what the harness's own aggregation takes.
    """
    try:
        statistics = _statistics(kind, value)
    except (TypeError, ValueError, IndexError) as error:
        wanted = "two labels, 0 or 1" if kind in TABLES else "a reference and a text"
        raise UserError(f"{where}: {kind} needs {wanted}, not {value!r:.60}") from error
    return score(kind, np.array(statistics)), statistics


def score(kind: str, total: FloatArray) -> float:
    """The metric of summed statistics [S], a fraction of 1, higher is better."""
    if kind in SENTENCES:
        value = float(_sacrebleu(kind)._compute_score_from_stats(total.tolist()).score) / 100
        return 1 - value if kind in TURNED else value
    if kind in TABLES:
        return _of_table(kind, *total.tolist())
    return math.exp(total[0] / total[1]) if total[1] > 0 else 0.0


def _of_table(kind: str, hits: float, false_alarms: float, misses: float, rejections: float) -> float:
    """F1 of label 1, or Matthews' correlation, from the four counts of right and wrong yes and no."""
    if kind == "f1":
        whole = 2 * hits + false_alarms + misses
        return 2 * hits / whole if whole else 0.0
    sides = (hits + false_alarms, hits + misses, rejections + false_alarms, rejections + misses)
    scale = math.sqrt(math.prod(sides))
    return (hits * rejections - false_alarms * misses) / scale if scale else 0.0


def pseudo_values(kind: str, statistics: Sequence[Sequence[float]]) -> FloatArray:
    """Influence pseudo-values [I] of items' statistics [I, S]; their mean is the corpus score."""
    table = np.array(statistics, dtype=float)
    total = table.sum(axis=0)
    return np.asarray(score(kind, total) + (len(table) * table - total) @ _gradient(kind, total))


def _gradient(kind: str, total: FloatArray) -> FloatArray:
    """Central differences with steps relative to each sum; a sum of zero (no 4-gram matched yet) has no slope.

    sacrebleu cuts BLEU's two lengths to whole numbers, so the slope of its brevity penalty exp(1 - r / c), which is 1
    where the text is no shorter than the reference, is written out.
    """
    slopes = np.zeros(len(total))
    moving = np.flatnonzero(total)
    if kind == "bleu":
        text, reference = total[:2]
        if 0 < text < reference:
            slopes[:2] = score(kind, total) * np.array([reference / text**2, -1 / text])
        moving = moving[moving > 1]
    for k in moving:
        step = np.zeros(len(total))
        step[k] = STEP * abs(total[k])
        slopes[k] = (score(kind, total + step) - score(kind, total - step)) / (2 * step[k])
    return slopes


def _statistics(kind: str, value: Any) -> tuple[float, ...]:
    if kind == "perplexity":
        return float(value), 1.0
    if kind in ("weighted_perplexity", "bits_per_byte"):
        likelihood, weight = value
        return float(likelihood), float(weight)
    if kind in TABLES:
        gold, said = (int(label) for label in value)
        if {gold, said} - {0, 1}:
            raise ValueError("labels 0 and 1 are needed")
        return tuple(float(cell == (gold, said)) for cell in ((1, 1), (0, 1), (1, 0), (0, 0)))
    reference, text = value
    references = [reference] if isinstance(reference, str) else list(reference)
    if isinstance(text, list | tuple):
        (text,) = text
    if not isinstance(text, str) or not all(isinstance(r, str) for r in references):
        raise TypeError("texts are needed")
    rows = _sacrebleu(kind)._extract_corpus_statistics([text], [[r] for r in references])
    return tuple(float(x) for x in rows[0])


@cache
def _sacrebleu(kind: str) -> CorpusMetric:
    """sacrebleu's metric with the settings of the harness's aggregation: sacrebleu's defaults, words too for chrF++."""
    from sacrebleu.metrics import bleu, chrf, ter

    if kind == "chrf++":
        return chrf.CHRF(word_order=2)
    kinds: dict[str, type[CorpusMetric]] = {"bleu": bleu.BLEU, "chrf": chrf.CHRF, "ter": ter.TER}
    return kinds[kind]()
