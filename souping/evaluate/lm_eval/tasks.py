"""Settings of `evaluator=lm_eval`, tasks loaded with their documents, and the decoding that they need."""

from __future__ import annotations

import fnmatch
import inspect
import logging
import random
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np

from souping.core.fields import Bounds, Count, Form, Seed, component, pick
from souping.core.files import expanded
from souping.core.text import first_line, install
from souping.core.types import JsonObject, UserError, frozen
from souping.evaluate.generate import MachineEvaluator
from souping.evaluate.lm_eval.metrics import Metric, choose_metric
from souping.evaluate.lm_eval.task_files import Spec, TaskFiles
from souping.evaluate.templates import PENALTIES, SAMPLING, Decoding

if TYPE_CHECKING:
    from lm_eval.api.task import Task
    from lm_eval.tasks import TaskManager

Document = JsonObject
NEUTRAL_KEYS = ("task_alias", "tag", "group", "dataset_kwargs", "metric_list", "filter_list")
"""Keys of a task that change no answer by themselves: names, the place of the data, and metrics that are not used."""
LOGGERS = ("lm_eval", "datasets", "sacrebleu", "huggingface_hub")
"""Loggers that are silenced."""
LENGTH_KEYS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names of the limit of an answer's tokens; the harness takes the first that is set."""
KNOWN = ("until", *LENGTH_KEYS, *SAMPLING, *PENALTIES)
"""What a task's generation_kwargs may say; transformers would take more, a program to generate with among it."""
HARNESS_DEFAULTS: JsonObject = {
    "backend": "default",
    "truncation": False,
    "logits_cache": True,
    "max_length": None,
    "softmax_dtype": None,
    "mixed_precision_dtype": None,
    "add_bos_token": None,
    "prefix_token_id": None,
    "think_end_token": None,
    "enable_thinking": None,
    "chat_template_args": None,
    "system_instruction": None,
    "fewshot_as_multiturn": True,
    "random_seed": 0,
    "numpy_random_seed": 1234,
    "torch_random_seed": 1234,
    "fewshot_random_seed": 1234,
    "include_defaults": None,
    "metadata": None,
}
"""Arguments of the harness that `args` may change. Those that answers depend on are always part of the fingerprint."""
EVALUATION_ARGUMENTS = (
    "system_instruction",
    "fewshot_as_multiturn",
    "random_seed",
    "numpy_random_seed",
    "torch_random_seed",
    "fewshot_random_seed",
)
"""Arguments that are `simple_evaluate`'s; its loop runs here."""
TASK_ARGUMENTS = ("include_defaults", "metadata")
"""Arguments that are the task manager's."""
IN_ITEMS = ("fewshot_random_seed", *TASK_ARGUMENTS)
"""Arguments that choose items, or that the items' own digests cover."""
SET_HERE = (
    "pretrained", "revision", "subfolder", "tokenizer", "use_fast_tokenizer", "max_batch_size", "parallelize",
    "max_memory_per_gpu", "max_cpu_memory", "offload_folder", "tp_plan", "peft", "delta", "autogptq", "gptqmodel",
    "gguf_file", "kwargs", "batch_size", "device", "dtype", "trust_remote_code",
)  # fmt: skip
"""Arguments of HFLM that have a key, or by which it would load a checkpoint."""
PUBLISHED: tuple[tuple[str, int, int], ...] = (
    (r"mgsm_\w+_[a-z]{2}", 250, 1),
    (r"flores36", 1012, 36),
    (r"infinitebench_longbook_qa_en", 351, 1),
    (r"infinitebench_longbook_choice_en", 229, 1),
    (r"infinitebench_longdialogue_qa_en", 200, 1),
)
"""(pattern of a task's name, documents of one leaf task, leaf tasks): MGSM, 250 problems a language (Shi et al. 2022);
FLORES-200's devtest, 1,012 sentences (NLLB Team 2022); infinite-Bench's tasks (Zhang et al. 2024, table 2)."""


@component
class HarnessSettings(MachineEvaluator):
    """Tasks of lm-evaluation-harness, and how they are evaluated.

    `docs/evaluators.md` describes the keys of souping (`metric`, `filter`, `category`, `group`) and the harness's that
    are fixed. `seed`, `repeats` and `aggregate` mean the same as for `LocalEvaluator`; each task and `gen_kwargs` say
    how answers are drawn. `args` are further arguments of the harness's model, `simple_evaluate` or task manager.
    """

    batch_size: Count = 16
    seed: Seed = 0
    repeats: Count = 1
    aggregate: Literal["mean", "pass"] = "mean"
    tasks: list[str | dict[str, Any]]
    include_path: str | list[str] | None = None
    metric: str | dict[str, str] | None = None
    filter: str | dict[str, str] | None = None
    category: Annotated[str, Form("task|entry|column:.*", "task, entry or column:NAME")] = "task"
    group: Annotated[str, Form("item|doc|column:.*", "item, doc or column:NAME")] = "item"
    num_fewshot: Annotated[int, Bounds(ge=0)] | None = None
    gen_kwargs: dict[str, Any] | None = None
    apply_chat_template: bool | str = False
    confirm_run_unsafe_code: bool = False
    allow_task_code: bool = False
    args: dict[str, Any] = field(default_factory=dict)

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of the harness by its own names, with the defaults of those that are not given."""
        return {**HARNESS_DEFAULTS, **self.args}

    @property
    def model_arguments(self) -> JsonObject:
        """The arguments that HFLM gets."""
        others = {*EVALUATION_ARGUMENTS, *TASK_ARGUMENTS}
        return {name: value for name, value in self.arguments.items() if name not in others}


@frozen
class Loaded:
    """Leaf task, the entry of `evaluator.tasks` it came with, its documents and the metric that scores them.

    `shots` holds the few-shot examples of each document, drawn for all documents in their order from one seed, as a
    complete run of the harness draws them: an item's prompt never depends on which other items are evaluated with it.
    `code` is what the files of its entry name as code, but for files of the harness.
    """

    name: str
    entry: str
    task: Task
    docs: Sequence[Document]
    shots: Sequence[Sequence[Document]]
    metric: Metric
    code: tuple[str, ...] = ()

    @property
    def generates(self) -> bool:
        """Whether the model writes answers; otherwise likelihoods are compared."""
        return bool(self.task.OUTPUT_TYPE == "generate_until")

    @property
    def generation_kwargs(self) -> Mapping[str, Any]:
        """The task's settings of decoding; empty if it compares likelihoods."""
        if not self.generates:
            return {}
        kwargs: Mapping[str, Any] | None = self.task.get_config("generation_kwargs")
        return kwargs or {}


def require() -> None:
    """Refuse if the packages of the extra `lm_eval` are not installed (UserError)."""
    absent = [name for name in ("lm_eval", "sacrebleu") if find_spec(name) is None]
    if absent:
        raise UserError(f"evaluator=lm_eval needs {absent[0]}", fix=install("lm_eval"))


def quiet_harness() -> None:
    """Keep the harness's log, warnings and progress bars out of the run's own display."""
    import datasets
    from lm_eval.api import task

    datasets.disable_progress_bars()
    task.tqdm = lambda documents, **_: documents
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
        warnings.filterwarnings("ignore", module=name)


def load_documents(evaluator: HarnessSettings) -> dict[str, Loaded]:
    """{leaf task: the task with its documents}, in the order of `evaluator.tasks`.

    Raises:
        UserError: a name is unknown (the nearest is given), a task's data is missing, or it cannot be scored here.
    """
    require()
    if not evaluator.tasks:
        raise UserError(
            "evaluator.tasks is empty: name tasks, groups or YAML files, e.g. evaluator.tasks='[mytask]'"
        )
    quiet_harness()
    check_argument_names(evaluator.args)
    seed(evaluator)
    loaded: dict[str, Loaded] = {}
    folders = evaluator.include_path or []
    if isinstance(folders, str):
        folders = [folders]
    arguments = evaluator.arguments
    defaults = arguments["include_defaults"]
    metadata = arguments["metadata"]
    files = TaskFiles(evaluator.tasks, folders, defaults, metadata, evaluator.allow_task_code)
    for entry, spec in _expand(evaluator.tasks, files.manager):
        # While the harness builds the entry's tasks, `files.allowed` gets the code that their files name.
        with naming_task(entry):
            tasks = _build(files, spec)
        for name, task in tasks.items():
            if name in loaded:
                raise UserError(
                    f"evaluator.tasks: {name} is in {loaded[name].entry} and in {entry}"
                )
            with naming_task(name):
                loaded[name] = _load(evaluator, name, entry, task, tuple(files.allowed))
        files.allowed.clear()
    _check_tasks_named(evaluator, loaded)
    return loaded


@contextmanager
def naming_task(name: str) -> Iterator[None]:
    """Turn any exception of the block into a UserError that names the task, whose code and data may be anybody's."""
    try:
        yield
    except UserError:
        raise
    # The harness takes the first document of a list that may be empty.
    except StopIteration as error:
        raise UserError(
            f"evaluator.tasks: {name} has no documents: check its dataset_path and splits"
        ) from error
    except Exception as error:
        cause = error.__cause__ or error
        what = f"{type(cause).__name__}: {first_line(cause)}"
        raise UserError(f"evaluator.tasks: {name} cannot be loaded: {what}") from error


def published_sizes(tasks: Sequence[Spec]) -> dict[str, int]:
    """{leaf task: documents} of tasks whose sizes are published; empty if one of them is unknown."""
    sizes: dict[str, int] = {}
    for task in tasks:
        if not isinstance(task, str):
            return {}
        published = [entry for entry in PUBLISHED if re.fullmatch(entry[0], task)]
        if not published:
            return {}
        _, size, leaves = published[0]
        if leaves == 1:
            sizes[task] = size
            continue
        # The names of the leaf tasks are not known without the task's file.
        for leaf in range(1, leaves + 1):
            sizes[f"{task} {leaf}"] = size
    return sizes


def seed(evaluator: HarnessSettings) -> None:
    """Seed Python's and numpy's generators, as simple_evaluate does: some tasks draw while they read their data."""
    with refused_arguments():
        random.seed(evaluator.arguments["random_seed"])
        np.random.seed(evaluator.arguments["numpy_random_seed"])


def check_argument_names(args: JsonObject) -> None:
    """Check the names in `evaluator.args` against the installed harness.

    Raises:
        UserError: nothing takes an argument of that name, or both the model and something else do.
    """
    # Importing the model takes long.
    if not args:
        return
    from lm_eval.models.huggingface import HFLM

    of_model = inspect.signature(HFLM).parameters.keys() - set(SET_HERE)
    of_harness = {*EVALUATION_ARGUMENTS, *TASK_ARGUMENTS}
    for name in args:
        pick(name, sorted(of_model | of_harness), "evaluator.args: name")
        if name in of_model & of_harness:
            raise UserError(f"evaluator.args.{name}: this lm_eval has two arguments of that name")


@contextmanager
def refused_arguments() -> Iterator[None]:
    """Turn an exception of the harness, torch or numpy into a UserError on `evaluator.args`, whose values they get."""
    try:
        yield
    except (AttributeError, OverflowError, TypeError, ValueError) as error:
        what = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"evaluator.args: lm_eval cannot use them: {what}") from error


def _expand(tasks: Sequence[Spec], manager: TaskManager) -> Iterator[tuple[str, Spec]]:
    """(entry of `evaluator.tasks`, task to load) of all entries.

    A pattern (`mgsm_direct_*`) gives each of the tasks that it matches, groups and tags left out.
    """
    for spec in tasks:
        if isinstance(spec, str) and set(spec) & set("*?["):
            names = fnmatch.filter(manager.all_subtasks, spec)
            if not names:
                raise UserError(f"evaluator.tasks: no task matches {spec}")
            for name in names:
                yield spec, name
        else:
            yield _title(spec), spec


def _title(spec: Spec) -> str:
    """Name of an entry of `evaluator.tasks`: the task of a mapping, the stem of a YAML file, or the entry itself."""
    if isinstance(spec, dict):
        return str(spec.get("task") or spec.get("group") or "?")
    path = Path(spec)
    return path.stem if path.suffix in (".yaml", ".yml") else str(spec)


def _build(files: TaskFiles, spec: Spec) -> dict[str, Task]:
    """{leaf name: task} that the harness makes of one entry (UserError if it is not known)."""
    index = files.manager.task_index
    if isinstance(spec, dict):
        # A mapping alone would define a new task; within a group, its keys change the known one.
        if spec.get("task") in index:
            spec = {"group": _title(spec), "task": [spec]}
    elif spec not in index:
        path = expanded(spec)
        if not path.is_file():
            # A file of this name may be missing in the index because it is not valid YAML.
            files.check_readable(Path(spec).name)
            hint = "; set evaluator.include_path for your own YAML"
            # Raises an error that names the nearest task.
            pick(spec, files.manager.all_tasks, "evaluator.tasks", hint)
        spec = str(path)
    tasks: dict[str, Task] = files.manager.load([spec])["tasks"]
    return tasks


def _load(
    evaluator: HarnessSettings, name: str, entry: str, task: Task, code: tuple[str, ...]
) -> Loaded:
    """The leaf task `name` with its documents; `entry` and `code` become the fields of `Loaded`.

    Raises:
        UserError: the task cannot be evaluated here, or with these settings.
    """
    if getattr(task, "MULTIMODAL", False):
        raise UserError(
            f"evaluator.tasks: {name} needs images or sound: run lm_eval --model hf-multimodal by evaluator=command"
        )
    unsafe = getattr(task, "UNSAFE_CODE", False)
    if unsafe and not evaluator.confirm_run_unsafe_code:
        raise UserError(
            f"evaluator.tasks: {name} runs code that the model writes: "
            "allow it with evaluator.confirm_run_unsafe_code=true"
        )
    _prepare(task, evaluator)
    check_decoding(name, task, evaluator)
    docs = list(task.eval_docs)
    shots = _shots(task, docs, evaluator.arguments["fewshot_random_seed"])
    metric = _for_task(evaluator.metric, name, entry)
    filter_ = _for_task(evaluator.filter, name, entry)
    return Loaded(
        name=name,
        entry=entry,
        task=task,
        docs=docs,
        shots=shots,
        metric=choose_metric(name, task, metric, filter_),
        code=code,
    )


def _prepare(task: Task, evaluator: HarnessSettings) -> None:
    """Change a task's settings as simple_evaluate does: generation settings, and the number of few-shot examples."""
    if evaluator.gen_kwargs and task.get_config("output_type") == "generate_until":
        task.set_config(key="generation_kwargs", value=dict(evaluator.gen_kwargs), update=True)
    # A task that declares 0 forbids examples; one that declares none has no examples by default.
    declared = task.get_config("num_fewshot")
    if evaluator.num_fewshot is not None and declared != 0:
        task.set_config(key="num_fewshot", value=evaluator.num_fewshot)
    elif declared is None:
        task.set_config(key="num_fewshot", value=0)


def _shots(task: Task, docs: Sequence[Document], seed: int | None) -> Sequence[Sequence[Document]]:
    """Few-shot examples of each document, as one pass of the harness over all documents draws them."""
    task.set_fewshot_seed(seed=seed)
    count = task.get_config("num_fewshot") or 0
    # A task that is written in Python has no sampler: it draws examples as it writes a prompt.
    if not count or not hasattr(task, "sampler"):
        return [()] * len(docs)
    # If examples and documents are of one split, an example must not be the document itself.
    same_split = task.fewshot_cfg.split == task.config.test_split
    shots = list[Sequence[Document]]()
    for doc in docs:
        shots.append(list(task.sampler.sample(n=count, eval_doc=doc if same_split else None)))
    return shots


def _for_task(setting: str | Mapping[str, str] | None, name: str, entry: str) -> str | None:
    """A task's value of a setting, which is one value for all tasks or {task or entry: value}; None if not set."""
    value = setting
    if isinstance(setting, Mapping):
        value = setting.get(name, setting.get(entry))
    return None if value is None else str(value)


def _check_tasks_named(evaluator: HarnessSettings, loaded: Mapping[str, Loaded]) -> None:
    """Refuse a `metric` or `filter` of a task or entry that is not among the loaded ones (UserError)."""
    known = {*loaded, *(task.entry for task in loaded.values())}
    for key, setting in (("metric", evaluator.metric), ("filter", evaluator.filter)):
        if isinstance(setting, Mapping):
            for name in setting:
                pick(name, sorted(known), f"evaluator.{key}: task")


def decoding_of(kwargs: Mapping[str, Any], evaluator: HarnessSettings) -> Decoding:
    """The decoding that a task's generation_kwargs ask for; the evaluator's `gen_kwargs` are among them."""
    # As in the harness, a temperature alone asks for sampling.
    temperature = kwargs.get("temperature") or 0.0
    # transformers' default temperature is 1.
    if kwargs.get("do_sample") and "temperature" not in kwargs:
        temperature = 1.0
    if kwargs.get("do_sample") is False:
        temperature = 0.0
    # A key with the value null is not set.
    return Decoding(
        temperature=float(temperature),
        top_p=float(kwargs.get("top_p") or 1.0),
        top_k=int(kwargs.get("top_k") or 0),
        min_p=float(kwargs.get("min_p") or 0.0),
        seed=evaluator.seed,
        penalties={key: kwargs[key] for key in PENALTIES if kwargs.get(key) is not None},
    )


def check_decoding(name: str, task: Task, evaluator: HarnessSettings) -> None:
    """Refuse generation_kwargs of a task that are not known or not usable, and beam search with sampling.

    Raises:
        UserError: the message names the task and the key.
    """
    if task.OUTPUT_TYPE != "generate_until":
        return
    where = f"evaluator.tasks: {name}"
    kwargs = task.get_config("generation_kwargs") or {}
    for key in kwargs:
        pick(key, KNOWN, f"{where}: generation_kwargs")
    try:
        decoding = decoding_of(kwargs, evaluator)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    beams = decoding.penalties.get("num_beams", 1)
    if decoding.temperature and beams != 1:
        raise UserError(
            f"{where}: its generation_kwargs say num_beams={beams}, which needs greedy answers"
        )
