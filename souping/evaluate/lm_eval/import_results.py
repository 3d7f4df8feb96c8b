"""Samples that `lm_eval --log_samples --output_path DIR` left, held against the run and answered from again.

Compared are model, task version, settings and documents. Then the run's own evaluator asks its questions, and a file of
old samples answers them. Prompts are rendered anew with the candidate's tokenizer, filters and metrics run anew on the
old answers: what comes out is what the run would have written, and a question that the file was never asked shows
itself.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from souping.core.imported import CandidateFacts, Difference, ImportedAnswers, compare
from souping.core.text import first_line
from souping.core.types import Item, Json, Record, UserError, elements, number, part
from souping.evaluate.engines import Answer
from souping.evaluate.engines.transformers import load_tokenizer, quiet
from souping.evaluate.lm_eval.generation import asked_prompt
from souping.evaluate.lm_eval.model import HFLM_KEYS, build, run, scored
from souping.evaluate.lm_eval.tasks import NEUTRAL, Loaded

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.task import Task
    from lm_eval.models.huggingface import HFLM

    from souping.evaluate.lm_eval.evaluator import HarnessEvaluator

Sample = dict[str, Json]
"""A line of a file of samples: one document after one filter."""

DATE = r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(?:\.\d+)?"
RESULTS = re.compile(rf"(?:.+_)?(?P<date>{DATE})\.json")
SAMPLES = re.compile(rf"samples_(?P<task>.+)_(?P<date>{DATE})\.jsonl")
ARGUMENTS = {
    "generate_until": ("prompt", "gen_kwargs"),
    "loglikelihood": ("prompt", "continuation"),
    "loglikelihood_rolling": ("prompt",),
}
MILD = ("batch_size", "max_batch_size", "logits_cache", "max_length", "softmax_dtype", "mixed_precision_dtype")
PLACE = (
    "pretrained", "revision", "dtype", "device", "parallelize", "device_map", "trust_remote_code", "tokenizer", "peft",
    "tensor_parallel_size", "data_parallel_size", "gpu_memory_utilization", "use_fast_tokenizer", "max_memory_per_gpu",
    "max_cpu_memory", "offload_folder", "subfolder", "low_cpu_mem_usage", "token", "model",
)  # fmt: skip
"""Model arguments that say where the model lies and runs; dtype is compared by what it came to."""
OTHER_MODEL = ("load_in_4bit", "load_in_8bit", "quantization", "quantization_config", "gptqmodel", "autogptq", "delta")
"""Model arguments that make another model of the weights."""
FOREVER = 2.0**35
"""No measurement is later, in seconds since the epoch; a later date is no date."""
NO_HASH = "lm_eval keeps no hash of the weights it measured: name, size and dates agree, more cannot be shown"


def read_samples(
    files: HarnessFiles,
    evaluator: HarnessEvaluator,
    items: Sequence[Item],
    candidate: CandidateFacts,
    tokenizer: Path,
) -> Iterator[ImportedAnswers]:
    """What one run of the harness holds for the run's tasks, task by task."""
    known = {item.id for item in items}
    ours = sorted(task for task in files.samples if task in evaluator.loaded)
    model = model_of(candidate.path, tokenizer, evaluator) if ours else None
    about_model = [*_model(files, candidate), *_settings(files, evaluator, model)] if model is not None else []
    for task in ours:
        loaded = evaluator.loaded[task]
        rows = files.rows(task, loaded.metric.filter)
        wanted = {number: row for number, row in rows.items() if f"{task}/{number}" in known}
        differences = [*about_model, *_task(files, task, loaded), *_documents(task, loaded, wanted)]
        records: Mapping[str, Record] = {}
        if model is not None and not any(not d.mild for d in differences):
            records, asked = replay(model, evaluator.loaded, task, wanted, evaluator, files.samples[task])
            differences += [*asked, *_sampled(files, wanted, evaluator)]
        skipped = {"not in the run": len(rows) - len(wanted), "not in the files": len(loaded.ids) - len(wanted)}
        yield ImportedAnswers(
            task=task,
            source=files.samples[task],
            records=records,
            differences=tuple(differences),
            skipped={why: count for why, count in skipped.items() if count > 0},
            unchecked=tuple(_unchecked(files, candidate)),
        )


def _unchecked(files: HarnessFiles, candidate: CandidateFacts) -> Iterator[str]:
    if not candidate.commit or files.config.get("model_sha") != candidate.commit:
        yield NO_HASH
    if not files.config.get("model_dtype"):
        yield f"the dtype it computed in, which model_source={files.results.get('model_source')} does not write down"


def _model(files: HarnessFiles, candidate: CandidateFacts) -> Iterator[Difference]:
    """Is it the same model? By commit, by the number of parameters, and by dates."""
    sha, count = files.config.get("model_sha"), files.config.get("model_num_parameters")
    if sha and candidate.commit:
        yield from compare("model_sha", sha, candidate.commit)
    if isinstance(count, int) and count > 0 and candidate.parameters and count not in candidate.parameters:
        yield Difference(key="model_num_parameters", in_files=count, in_run=max(candidate.parameters))
    measured = files.date
    if candidate.written and 0 < measured < candidate.written:
        then, now = (
            datetime.fromtimestamp(t, UTC).isoformat(timespec="minutes") for t in (measured, candidate.written)
        )
        yield Difference(key="weights", in_files=f"measured {then}", in_run=f"written {now}", mild=True)


def _settings(files: HarnessFiles, evaluator: HarnessEvaluator, model: HFLM) -> Iterator[Difference]:
    """Settings of the whole measurement."""
    config, results, device = files.config, files.results, evaluator.module_settings().device
    dtype = config.get("model_dtype")
    computed = evaluator.module_settings().dtype
    if dtype and computed != "auto":
        yield from compare("dtype", str(dtype).removeprefix("torch."), computed)
    yield from compare("apply_chat_template", bool(results.get("chat_template")), bool(evaluator.apply_chat_template))
    if results.get("chat_template") and evaluator.apply_chat_template:
        yield from compare(
            "chat_template", results["chat_template"], model.chat_template(evaluator.apply_chat_template)
        )
    yield from compare("system_instruction", results.get("system_instruction") or None, evaluator.system_instruction)
    yield from _arguments(files, evaluator)
    yield from compare("lm_eval_version", results.get("lm_eval_version"), evaluator.settings["lm_eval"], mild=True)
    yield from compare("model_source", results.get("model_source"), "hf", mild=True)
    yield from compare("device", str(config.get("device") or device), device, True)
    yield from compare("max_length", results.get("max_length", model.max_length), model.max_length, mild=True)
    for kind in ("bos", "eos", "pad"):
        own, tokenizer = results.get(f"tokenizer_{kind}_token"), model.tokenizer
        now = [getattr(tokenizer, f"{kind}_token"), str(getattr(tokenizer, f"{kind}_token_id"))]  # transformers'
        yield from compare(f"tokenizer_{kind}_token", own or now, now, mild=kind == "pad")


def _arguments(files: HarnessFiles, evaluator: HarnessEvaluator) -> Iterator[Difference]:
    """`--model_args` and `--batch_size` against the evaluator's settings of the same names."""
    defaults = {f.name: f.default for f in fields(evaluator)}
    given = {**files.arguments, "batch_size": files.config.get("batch_size") or files.arguments.get("batch_size", 1)}
    for key in HFLM_KEYS:
        then, now = given.pop(key, defaults[key]), getattr(evaluator, key)
        if key == "max_batch_size" and isinstance(evaluator.batch_size, int):
            continue
        yield from compare(key, str(then), str(now), mild=key in MILD)
    for key, value in given.items():
        if key not in PLACE and value not in (None, False, "False", "None"):
            yield Difference(key=f"model_args.{key}", in_files=value, in_run=None, mild=key not in OTHER_MODEL)


def _task(files: HarnessFiles, task: str, loaded: Loaded) -> Iterator[Difference]:
    """Version, shots and configuration of one task."""
    results = files.results
    version = part(results, "versions").get(task)
    yield from compare(f"version of {task}", str(version), str(loaded.task.VERSION))
    shots = part(results, "n-shot").get(task, 0)
    yield from compare("num_fewshot", shots, loaded.task.get_config("num_fewshot") or 0)
    then, now = part(part(results, "configs"), task), _dumped(loaded.task)
    if not then:
        yield Difference(key=f"configuration of {task}", in_files=None, in_run=f"version {loaded.task.VERSION}")
    for key in sorted(set(then) & set(now) - {*NEUTRAL, "metadata", "num_fewshot", "fewshot_config"}):
        yield from compare(f"{key} of {task}", then[key], now[key])


def _dumped(task: Task) -> dict[str, Json]:
    """A task's configuration as the harness writes it to its results."""
    from lm_eval.utils import handle_non_serializable

    text = json.dumps(dict(task.dump_config()), default=handle_non_serializable, ensure_ascii=False)
    return dict(json.loads(text))


def _documents(task: str, loaded: Loaded, rows: Mapping[int, Sample]) -> list[Difference]:
    """The first document that is not what it was, by the harness's own hash of it."""
    from lm_eval.utils import handle_non_serializable, hash_string

    for doc, row in rows.items():
        text = json.dumps(loaded.docs[doc], indent=2, default=handle_non_serializable, ensure_ascii=False)
        then, now = str(row["doc_hash"]), str(hash_string(text))
        if then != now:
            return [Difference(key=f"doc_hash of {task}/{doc}", in_files=then[:12], in_run=now[:12])]
    return []


def _sampled(files: HarnessFiles, rows: Mapping[int, Sample], evaluator: HarnessEvaluator) -> list[Difference]:
    """Answers drawn at random are draws of their own seed."""
    arguments = [part(row, "arguments") for row in rows.values()]
    drawn = any(part(part(all_of, key), "arg_1").get("do_sample") for all_of in arguments for key in all_of)
    return compare("torch_seed", files.config.get("torch_seed"), evaluator.torch_random_seed, True) if drawn else []


@dataclass(frozen=True, kw_only=True)
class HarnessFiles:
    """One run of lm-evaluation-harness: its results, and {task: file of samples}."""

    path: Path
    results: Mapping[str, Json]
    samples: Mapping[str, Path]

    @property
    def model(self) -> str:
        """What the harness called the model: a path, or a name on the Hub."""
        return str(self.results.get("model_name") or "")

    @property
    def config(self) -> Mapping[str, Json]:
        return part(self.results, "config")

    @property
    def arguments(self) -> dict[str, Json]:
        """`--model_args`, which older versions keep as one text."""
        given = self.config.get("model_args") or {}
        if isinstance(given, Mapping):
            return dict(given)
        pairs = (pair.partition("=") for pair in str(given).split(",") if pair)
        return {key: value for key, _, value in pairs}

    @property
    def date(self) -> float:
        """When it was measured, seconds since the epoch; 0 where the files say nothing that is a time."""
        seconds = number(self.results.get("date")) or 0.0
        return seconds if 0 < seconds < FOREVER else 0.0

    def rows(self, task: str, kept: str) -> dict[int, Sample]:
        """{document: sample} of a task after the filter that is kept.

        Raises:
            UserError: the file cannot be read, a line is no sample of the harness, or a document stands there twice.
        """
        path, rows = self.samples[task], dict[int, Sample]()
        for count, line in enumerate(_text(path).split("\n"), start=1):  # not splitlines: answers hold U+2028
            row = _row(line, f"{path}:{count}") if line.strip() else {}
            if row.get("filter") != kept:
                continue
            doc = int(str(row["doc_id"]))
            if doc in rows:
                raise UserError(f"{path}:{count}: document {doc} stands there twice after filter {kept}")
            rows[doc] = row
        return rows


def find_samples(paths: Sequence[Path]) -> list[HarnessFiles]:
    """The runs below these files and folders, newest first: of two measurements the later counts.

    Raises:
        UserError: samples without the results file of their run (its settings are in there), or a broken file.
    """
    names = {path.resolve() for given in paths for path in _below(given)}
    samples: dict[Path, dict[str, Path]] = {}
    for path in sorted(names):
        sample = SAMPLES.fullmatch(path.name)
        if sample:
            samples.setdefault(_results_beside(path, sample["date"]), {})[sample["task"]] = path
        elif RESULTS.fullmatch(path.name):
            samples.setdefault(path, {}).update(_samples_beside(path))
    runs = [HarnessFiles(path=path, results=_results(path), samples=own) for path, own in samples.items()]
    runs = [run for run in runs if "configs" in run.results and run.samples]
    return sorted(runs, key=lambda run: run.date, reverse=True)


def _below(path: Path) -> Iterator[Path]:
    try:
        there = [p for p in path.rglob("*.json*") if p.is_file()] if path.is_dir() else [path]
        if not path.is_dir() and not path.is_file():
            raise UserError(f"{path}: there is no such file or folder")
    except OSError as error:
        raise UserError(f"{str(path)[:200]}: cannot be read: {error.strerror}") from error
    yield from there


def _results_beside(path: Path, date: str) -> Path:
    for other in sorted(path.parent.glob(f"*{date}.json")):
        if RESULTS.fullmatch(other.name):
            return other
    raise UserError(
        f"{path}: its results file (results_{date}.json) is not beside it: the settings of the measurement are in there"
    )


def _samples_beside(path: Path) -> dict[str, Path]:
    results = RESULTS.fullmatch(path.name)
    date = results["date"] if results else ""
    matches = [(SAMPLES.fullmatch(other.name), other) for other in path.parent.glob(f"samples_*_{date}.jsonl")]
    return {match["task"]: other for match, other in matches if match}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or 'not UTF-8 text'}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot be read: not UTF-8 text") from error


def _results(path: Path) -> Mapping[str, Json]:
    results = _parsed(_text(path), f"{path}: not a results file of lm_eval")
    return results if isinstance(results, dict) else {}


def _parsed(text: str, wrong: str) -> Json:
    try:
        value: Json = json.loads(text)
    except ValueError as error:
        raise UserError(f"{wrong}: {first_line(error)}") from error
    except RecursionError as error:
        raise UserError(f"{wrong}: it is nested too deeply") from error
    return value


def _row(line: str, where: str) -> Sample:
    row = _parsed(line, f"{where}: not a line of JSON, the file may be cut off")
    if not isinstance(row, dict):
        raise UserError(f"{where}: no sample of lm_eval: it is {type(row).__name__}, not an object")
    absent = [key for key in ("doc_id", "doc_hash", "arguments", "resps", "filter") if key not in row]
    if absent:
        raise UserError(f"{where}: no sample of lm_eval: it has no {absent[0]}")
    if isinstance(row["arguments"], list):  # of lists, before 0.4.3
        row["arguments"] = {
            f"gen_args_{i}": {f"arg_{j}": one for j, one in enumerate(elements({"": parts}, ""))}
            for i, parts in enumerate(row["arguments"])
        }
    kinds = {"doc_id": int, "doc_hash": str, "arguments": dict, "resps": list, "filter": str}
    odd = [key for key, kind in kinds.items() if not isinstance(row[key], kind) or isinstance(row[key], bool)]
    if odd:
        raise UserError(f"{where}: no sample of lm_eval: its {odd[0]} is {row[odd[0]]!r:.60}")
    return {key: value for key, value in row.items() if key != "doc"}  # which may be a book; its hash is enough


def model_of(folder: Path, tokenizer: Path, evaluator: HarnessEvaluator) -> HFLM:
    """The harness's model of a candidate without its weights: tokenizer, chat template and lengths are the real ones.

    Raises:
        UserError: its configuration is of no kind that transformers knows.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    quiet()
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=evaluator.trust_remote_code)
        kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        with torch.device("meta"):
            module = kind.from_config(  # type: ignore[no-untyped-call]
                config, trust_remote_code=evaluator.trust_remote_code
            )
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: cannot read its configuration: {first_line(error)}") from error
    return build(module, load_tokenizer(tokenizer, evaluator.trust_remote_code), evaluator)


class Replay:
    """Stands in front of the harness's model: answers each request from the file, and compares what was asked.

    `rows` are the samples of the file `source` by document number, asked in that order. `differences` holds the first
    request that the file does not know, by the part of it that differs.
    """

    def __init__(self, model: HFLM, task: str, rows: Mapping[int, Sample], source: Path) -> None:
        self._model, self._task, self._rows, self._ids, self._source = model, task, rows, sorted(rows), source
        self._told: Counter[tuple[int, int]] = Counter()
        self.differences: dict[str, Difference] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)  # lm_eval's

    def __setattr__(self, name: str, value: Any) -> None:
        """What the evaluator sets (tool schemas) is for the chat template, which is the model's."""
        target = self if name.startswith("_") or name == "differences" else self._model
        object.__setattr__(target, name, value)

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        answers = [self._answer(request) for request in requests]
        for request, answer in zip(requests, answers, strict=True):
            if not isinstance(answer, str):
                raise self._odd(request, answer, "no text")
        self._model.keep(requests, [asked_prompt(self._model, request) for request in requests])
        return [str(answer) for answer in answers]

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        told = []
        for request in requests:
            answer = self._answer(request)
            pair = elements({"": answer}, "")
            if len(pair) != 2 or str(pair[1]) not in ("True", "False"):
                raise self._odd(request, answer, "no log-likelihood with whether it is greedy")
            told.append((self._likelihood(request, pair[0]), str(pair[1]) == "True"))
            context, rest = request.args[:2]
            pieces = self._model._encode_pair(context, rest) if context else None  # lm_eval's
            self._model.keep([request], [scored(self._model, *pieces) if pieces else Answer()])
        return told

    def loglikelihood_rolling(self, requests: Sequence[Instance]) -> list[float]:
        answers = [self._answer(request) for request in requests]
        values = [elements({"": answer}, "")[:1] or [answer] for answer in answers]
        return [self._likelihood(request, value) for request, (value,) in zip(requests, values, strict=True)]

    def _likelihood(self, request: Instance, value: Json) -> float:
        """A log-likelihood, which the harness logs as text."""
        try:
            likelihood = float(str(value))
        except ValueError:
            likelihood = math.nan
        if not likelihood < 1e-3:  # above 0 by rounding alone
            raise self._odd(request, value, "no log-likelihood")
        return likelihood

    def _odd(self, request: Instance, answer: Json, what: str) -> UserError:
        number = self._ids[request.doc_id]
        return UserError(f"{self._source}: document {number} has {answer!r:.60} as an answer, which is {what}")

    def _answer(self, request: Instance) -> Json:
        number = self._ids[request.doc_id]
        row, place = self._rows[number], (number, request.idx)
        self._compare(request, row, f"{self._task}/{number}")
        told = self._told[place]
        self._told[place] += 1
        answers = elements(row, "resps")
        try:
            return elements({"": answers[request.idx]}, "")[told]
        except IndexError:
            raise UserError(
                f"{self._source}: document {number} has {len(answers)} requests, {told} answers to each; "
                "the run makes more"
            ) from None

    def _compare(self, request: Instance, row: Sample, item: str) -> None:
        """The request as it is made now against the one that was made then."""
        then = part(part(row, "arguments"), f"gen_args_{request.idx}")
        for place, what in enumerate(ARGUMENTS[request.request_type]):
            now = _plain(request.args[place])
            if then.get(f"arg_{place}") != now and what not in self.differences:
                before, after = _apart(then.get(f"arg_{place}"), now)
                self.differences[what] = Difference(key=f"{what} of {item}", in_files=before, in_run=after)


def replay(
    model: HFLM,
    loaded: Mapping[str, Loaded],
    task: str,
    rows: Mapping[int, Sample],
    evaluator: HarnessEvaluator,
    source: Path,
) -> tuple[dict[str, Record], list[Difference]]:
    """({item id: record}, differences between the requests then and now) of the documents that `rows` has."""
    ids = sorted(rows)
    if not ids:
        return {}, []
    front = Replay(model, task, rows, source)
    records = run(front, loaded, {task: ids}, evaluator)
    return records, list(front.differences.values())


def _plain(value: Json) -> Json:
    """A request's argument as the harness logs it."""
    plain: Json = json.loads(json.dumps(value, default=str))
    return plain


def _apart(then: Json, now: Json) -> tuple[Json, Json]:
    """Two values, texts cut to where they part."""
    if not (isinstance(then, str) and isinstance(now, str)):
        return then, now
    same = next((i for i, (a, b) in enumerate(zip(then, now, strict=False)) if a != b), min(len(then), len(now)))
    start = max(0, same - 10)
    before, after = (("..." if start else "") + text[start : start + 40] for text in (then, now))
    return before, after
