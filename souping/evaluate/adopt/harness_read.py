"""Samples of lm-evaluation-harness, held against the run: model, task version, settings, documents, every prompt."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any

from souping.core import Item
from souping.evaluate.adopt.harness_files import HarnessFiles
from souping.evaluate.adopt.harness_replay import model_of, replay
from souping.evaluate.adopt.parts import Difference, Found, Single, compare
from souping.evaluate.harness.items import NEUTRAL
from souping.evaluate.harness.live import HFLM_KEYS

MILD = ("batch_size", "max_batch_size", "logits_cache", "max_length", "softmax_dtype", "mixed_precision_dtype")
PLACE = (
    "pretrained", "revision", "dtype", "device", "parallelize", "device_map", "trust_remote_code", "tokenizer", "peft",
    "tensor_parallel_size", "data_parallel_size", "gpu_memory_utilization", "use_fast_tokenizer", "max_memory_per_gpu",
    "max_cpu_memory", "offload_folder", "subfolder", "low_cpu_mem_usage", "token", "model",
)  # fmt: skip
"""Model arguments that say where the model lies and runs; dtype is compared by what it came to."""
OTHER_MODEL = ("load_in_4bit", "load_in_8bit", "quantization", "quantization_config", "gptqmodel", "autogptq", "delta")
"""Model arguments that make another model of the weights."""
NO_HASH = "lm_eval keeps no hash of the weights it measured: name, size and dates agree, more cannot be shown"


def read(
    files: HarnessFiles, evaluator: Any, items: Sequence[Item], single: Single, tokenizer: Callable[[], Any]
) -> Iterator[Found]:
    """What one run of the harness holds for the run's tasks, task by task."""
    known = {item.id for item in items}
    ours = sorted(task for task in files.samples if task in evaluator.loaded)
    model = model_of(single.path, tokenizer(), evaluator) if ours else None
    about_model = [*_model(files, single), *_settings(files, evaluator, model)] if ours else []
    for task in ours:
        loaded, everything = evaluator.loaded[task], files.rows(task)
        rows = {row["doc_id"]: row for row in everything if row["filter"] == loaded.metric.filter}
        wanted = {number: row for number, row in rows.items() if f"{task}/{number}" in known}
        differences = [*about_model, *_task(files, task, loaded), *_documents(task, loaded, wanted)]
        records: Mapping[str, Any] = {}
        if not any(not d.mild for d in differences):
            records, asked = replay(model, evaluator.loaded, task, wanted, evaluator)
            differences += [*asked, *_sampled(files, wanted, evaluator)]
        skipped = {"not in the run": len(rows) - len(wanted), "not in the files": len(loaded.ids) - len(wanted)}
        yield Found(
            task=task,
            source=files.samples[task],
            records=records,
            differences=tuple(differences),
            skipped={why: count for why, count in skipped.items() if count > 0},
            unchecked=tuple(_unchecked(files, single)),
        )


def _unchecked(files: HarnessFiles, single: Single) -> Iterator[str]:
    if not single.commit or files.config.get("model_sha") != single.commit:
        yield NO_HASH
    if not files.config.get("model_dtype"):
        yield f"the dtype it computed in, which model_source={files.results.get('model_source')} does not write down"


def _model(files: HarnessFiles, single: Single) -> Iterator[Difference]:
    """Is it the same model? By commit, by the number of parameters, and by dates."""
    sha, count = files.config.get("model_sha"), files.config.get("model_num_parameters")
    if sha and single.commit:
        yield from compare("model_sha", sha, single.commit)
    if isinstance(count, int) and count > 0 and single.parameters and count not in single.parameters:
        yield Difference(key="model_num_parameters", found=count, wanted=max(single.parameters))
    measured = files.results.get("date")
    if single.written and isinstance(measured, int | float) and single.written > measured:
        then, now = (datetime.fromtimestamp(t, UTC).isoformat(timespec="minutes") for t in (measured, single.written))
        yield Difference(key="weights", found=f"measured {then}", wanted=f"written {now}", mild=True)


def _settings(files: HarnessFiles, evaluator: Any, model: Any) -> Iterator[Difference]:
    """Settings of the whole measurement."""
    config, results = files.config, files.results
    dtype = config.get("model_dtype")
    if dtype:
        yield from compare("dtype", str(dtype).removeprefix("torch."), evaluator.dtype)
    yield from compare("apply_chat_template", bool(results.get("chat_template")), bool(evaluator.apply_chat_template))
    if results.get("chat_template") and evaluator.apply_chat_template:
        yield from compare(
            "chat_template", results["chat_template"], model.chat_template(evaluator.apply_chat_template)
        )
    yield from compare("system_instruction", results.get("system_instruction") or None, evaluator.system_instruction)
    yield from _arguments(files, evaluator)
    yield from compare("lm_eval_version", results.get("lm_eval_version"), evaluator.settings["lm_eval"], mild=True)
    yield from compare("model_source", results.get("model_source"), "hf", mild=True)
    yield from compare(
        "device", str(config.get("device") or evaluator.resolved_device), evaluator.resolved_device, True
    )
    yield from compare("max_length", results.get("max_length", model.max_length), model.max_length, mild=True)
    for kind in ("bos", "eos", "pad"):
        own, tokenizer = results.get(f"tokenizer_{kind}_token"), model.tokenizer
        now = [getattr(tokenizer, f"{kind}_token"), str(getattr(tokenizer, f"{kind}_token_id"))]
        yield from compare(f"tokenizer_{kind}_token", own or now, now, mild=kind == "pad")


def _arguments(files: HarnessFiles, evaluator: Any) -> Iterator[Difference]:
    """`--model_args` and `--batch_size` against the evaluator's settings of the same names."""
    defaults = {f.name: f.default for f in fields(evaluator)}
    given = {**files.arguments, "batch_size": files.config.get("batch_size") or files.arguments.get("batch_size", 1)}
    for key in HFLM_KEYS:
        found, wanted = given.pop(key, defaults[key]), getattr(evaluator, key)
        if key == "max_batch_size" and isinstance(evaluator.batch_size, int):
            continue
        yield from compare(key, str(found), str(wanted), mild=key in MILD)
    for key, value in given.items():
        if key not in PLACE and value not in (None, False, "False", "None"):
            yield Difference(key=f"model_args.{key}", found=value, wanted=None, mild=key not in OTHER_MODEL)


def _task(files: HarnessFiles, task: str, loaded: Any) -> Iterator[Difference]:
    """Version, shots and configuration of one task."""
    results = files.results
    version = (results.get("versions") or {}).get(task)
    yield from compare(f"version of {task}", str(version), str(loaded.task.VERSION))
    shots = (results.get("n-shot") or {}).get(task, 0)
    yield from compare("num_fewshot", shots, loaded.task.get_config("num_fewshot") or 0)
    then, now = (results.get("configs") or {}).get(task) or {}, _dumped(loaded.task)
    for key in sorted(set(then) & set(now) - {*NEUTRAL, "metadata", "num_fewshot", "fewshot_config"}):
        yield from compare(f"{key} of {task}", then[key], now[key])


def _dumped(task: Any) -> dict[str, Any]:
    """A task's configuration as the harness writes it to its results."""
    from lm_eval.utils import handle_non_serializable

    text = json.dumps(dict(task.dump_config()), default=handle_non_serializable, ensure_ascii=False)
    return dict(json.loads(text))


def _documents(task: str, loaded: Any, rows: Mapping[int, Mapping[str, Any]]) -> list[Difference]:
    """The first document that is not what it was, by the harness's own hash of it."""
    from lm_eval.utils import handle_non_serializable, hash_string

    for number, row in rows.items():
        text = json.dumps(loaded.docs[number], indent=2, default=handle_non_serializable, ensure_ascii=False)
        if row["doc_hash"] != (now := hash_string(text)):
            return [Difference(key=f"doc_hash of {task}/{number}", found=row["doc_hash"][:12], wanted=now[:12])]
    return []


def _sampled(files: HarnessFiles, rows: Mapping[int, Mapping[str, Any]], evaluator: Any) -> list[Difference]:
    """Answers drawn at random are draws of their own seed."""
    arguments = [value for row in rows.values() for value in row["arguments"].values() if isinstance(value, dict)]
    drawn = any(isinstance(a.get("arg_1"), dict) and a["arg_1"].get("do_sample") for a in arguments)
    return compare("torch_seed", files.config.get("torch_seed"), evaluator.torch_random_seed, True) if drawn else []
