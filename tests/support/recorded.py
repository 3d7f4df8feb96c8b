"""Values in `tests/data/recorded`, and the same values measured by the package as it is now.

A recorded word, such as `evaluator.batch_size=3`, is what was typed when the values were recorded. `RENAMED` says what
to type for it now. It is all that a new name of a key, a choice or a model's row needs; recorded values never change.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from copy import deepcopy
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser

from souping.answers.claims import evaluator_digest
from souping.core.protocols import Evaluator, evaluator_fingerprint
from souping.core.types import Item
from souping.evaluate.benchmark import make_splits
from souping.merge.backend import MergeBackend
from tests.conftest import ROOT
from tests.support.composition import unchecked

RENAMED: dict[str, str] = {
    "scrambled": "shuffled",
    "bfcl with transformers: evaluator.batch_size=3": "",
    "bfcl with transformers: evaluator.threads=3": "evaluator.num_concurrent=3",
    "bfcl with transformers: evaluator.timeout=60": "",
    "engine.dtype=float16": "evaluator.dtype=float16",
    "engine.enforce_eager=true": "+engine.args.enforce_eager=true",
    "engine.gpu_memory_utilization=0.5": "+engine.args.gpu_memory_utilization=0.5",
    "engine.max_model_len=999": "+engine.args.max_model_len=999",
    "engine.seed=7": "+engine.args.seed=7",
    "engine.speculative={method:ngram,num_speculative_tokens:4}": (
        "+engine.args.speculative_config={method:ngram,num_speculative_tokens:4}"
    ),
    "evaluator.add_bos_token=true": "+evaluator.args.add_bos_token=true",
    "evaluator.allow_code=true": "evaluator.allow_task_code=true",
    "evaluator.backend=causal": "+evaluator.args.backend=causal",
    "evaluator.chat_template_args={a:1}": "+evaluator.args.chat_template_args={a:1}",
    "evaluator.dir=/opt/bfcl": "evaluator.python=/opt/bfcl/bin/python",
    "evaluator.dir=logs": "evaluator.scratch=logs",
    "evaluator.enable_thinking=true": "+evaluator.args.enable_thinking=true",
    "evaluator.fewshot_as_multiturn=false": "+evaluator.args.fewshot_as_multiturn=false",
    "evaluator.fewshot_random_seed=7": "+evaluator.args.fewshot_random_seed=7",
    "evaluator.handlers={a:plain}": "evaluator.handler={a:plain}",
    "evaluator.ids=[simple_python_0]": "",
    "evaluator.include_defaults=false": "+evaluator.args.include_defaults=false",
    "evaluator.limit=5": "benchmark.limit=5",
    "evaluator.logits_cache=false": "+evaluator.args.logits_cache=false",
    "evaluator.max_length=99": "+evaluator.args.max_length=99",
    "evaluator.max_tokens=99": "evaluator.max_new_tokens=99",
    "evaluator.metadata={a:1}": "+evaluator.args.metadata={a:1}",
    "evaluator.mixed_precision_dtype=bfloat16": "+evaluator.args.mixed_precision_dtype=bfloat16",
    "evaluator.name=mine": "benchmark.name=mine",
    "evaluator.numpy_random_seed=7": "+evaluator.args.numpy_random_seed=7",
    "evaluator.prefix_token_id=3": "+evaluator.args.prefix_token_id=3",
    "evaluator.random_seed=7": "+evaluator.args.random_seed=7",
    "evaluator.replicates=2": "evaluator.repeats=2",
    "evaluator.samples=2": "evaluator.repeats=2",
    "evaluator.samples=3": "evaluator.repeats=3",
    "evaluator.sampling_seed=7": "evaluator.seed=7",
    "evaluator.softmax_dtype=float32": "+evaluator.args.softmax_dtype=float32",
    "evaluator.system_instruction=hello": "+evaluator.args.system_instruction=hello",
    "evaluator.think_end_token=END": "+evaluator.args.think_end_token=END",
    "evaluator.torch_random_seed=7": "+evaluator.args.torch_random_seed=7",
    "evaluator.truncation=true": "+evaluator.args.truncation=true",
    "evaluator=pantry": (
        "evaluator=local evaluator.batch_size=128 evaluator.max_new_tokens=48 evaluator.threads=1 evaluator.workers=2"
    ),
    # With engine=vllm, the evaluator's dtype meant nothing.
    "local with vLLM: evaluator.dtype=bfloat16": "",
    "server.device=cpu": "+server.args.device=cpu",
    "server.device=cuda:1": "+server.args.device=cuda:1",
    "server.extra_args=[--continuous-batching]": "+server.args.continuous_batching=true",
    "server.extra_args=[--enforce-eager]": "+server.args.enforce_eager=true",
    "server.gpu_memory_utilization=0.5": "+server.args.gpu_memory_utilization=0.5",
    "server.max_model_len=999": "+server.args.max_model_len=999",
    "store.path=store.sqlite": "store=store.sqlite",
    "merge.base=models/base_cook": "merge.base_model=models/base_cook",
    "merge.carry=java_cook": "merge.tokenizer_from=java_cook",
    "merge.overrides={layers.0-1:[0.6,0.4,0],*.mlp.*:[0.2,0.2,0.6]}": (
        "merge.tensor_weights={layers.0-1:[0.6,0.4,0],*.mlp.*:[0.2,0.2,0.6]}"
    ),
}
"""{recorded word, or `choice: recorded word`: the words to type for it now, separated by spaces}."""
DATA = ROOT / "tests" / "data" / "recorded"
CHECKPOINTS = {100: "base_cook", 200: "java_cook", 300: "banquet_cook", 400: "python_cook"}
"""{step: bundled model} of the training run."""
LM_EVAL = "0.4.13"
"""Version of lm_eval in the fingerprints and in the store."""
TABLES = ("soups", "evaluators", "items", "answers", "grades")
"""Tables of the store that grow if something is evaluated or scored."""


def recorded(name: str) -> Any:
    """A file of the recorded values."""
    return json.loads((DATA / f"{name}.json").read_text())


def now(words: Sequence[str], choice: str = "") -> list[str]:
    """What to type for recorded words, which may mean something else with an evaluator of the fingerprints."""
    typed = list[str]()
    for word in words:
        typed += RENAMED.get(f"{choice}: {word}", RENAMED.get(word, word)).split()
    return typed


# Evaluators and recipes


def config(words: Sequence[str]) -> dict[str, Any]:
    """The configuration of a run with these recorded words."""
    return unchecked(now(["pool.candidates=[a,b]", *words]))


def changed(plain: Mapping[str, Any], words: Sequence[str], choice: str) -> dict[str, Any]:
    """The configuration with these recorded words too. To compose it anew for each key takes a minute."""
    changed = deepcopy(dict(plain))
    parser = OverridesParser.create()
    for word in now(words, choice):
        override = parser.parse_override(word)
        *path, key = override.key_or_group.split(".")
        node = changed
        for name in path:
            node = node[name]
        node[key] = override.value()
    for group in ("engine", "server"):
        if group in changed["evaluator"]:
            changed["evaluator"][group] = changed[group]
    return changed


def build(plain: Mapping[str, Any], group: str) -> Any:
    """The component of a group."""
    from souping.cli import parts

    return parts.build_part(plain[group], parts.component_kind(group), group)


def identities(plain: Mapping[str, Any]) -> list[str]:
    """What the store and the looks know an evaluator by."""
    evaluator: Evaluator = build(plain, "evaluator")
    return [evaluator_fingerprint(evaluator), evaluator_digest(evaluator)]


def soup(place: Path, row: Mapping[str, Any]) -> list[str]:
    """Id of a recipe, and the digest of the soup's weights where a recorded one is compared."""
    words = ["+experiment=merge", "optimiser=uniform", *row["words"]]
    merge: MergeBackend = build(config(words), "merge")
    folders = {Path(name).name: place / name for name in row["weights"]}
    pool = merge.open(folders)
    recipe = pool.recipe({Path(name).name: weight for name, weight in row["weights"].items()})
    if len(row["soup"]) < 2:
        return [recipe.id]
    out = pool.write(recipe, place / "soups" / recipe.id)
    return [recipe.id, weights_digest(out)]


def weights_digest(folder: Path) -> str:
    (file,) = folder.glob("*.safetensors")
    return hashlib.sha256(file.read_bytes()).hexdigest()


# Splits


def recorded_items(benchmark: str) -> list[Item]:
    """Items of one of the paper's benchmarks, as far as their split depends on them."""
    with gzip.open(DATA / "groups.json.gz", "rt") as file:
        groups = json.load(file)[benchmark]
    items = list[Item]()
    for category, names in groups.items():
        for number, group in enumerate(names):
            item_id = f"{category}_{number}"
            items.append(Item(id=item_id, category=category, prompt="?", answer="", group=group))
    return items


def splits(items: Sequence[Item], published: bool, key: str) -> dict[str, Any]:
    """Counts by split and category, and the digest of which item is in which split.

    An item is known by its `identity`, the digest of its prompt, or by its `id`: names of the bundled items may change.
    """
    counts = dict[str, dict[str, int]]()
    lines = list[str]()
    # The splits stand in the order of a run.
    for split, members in enumerate(make_splits(items, two=published).items.values()):
        counts[str(split)] = dict(sorted(Counter(item.category for item in members).items()))
        for item in members:
            name = item.prompt_digest if key == "identity" else item.id
            lines.append(f"{split} {name}")
    text = "\n".join(sorted(lines))
    return {"counts": counts, "digest": hashlib.sha256(text.encode()).hexdigest()}


# Runs


def make_place(place: Path) -> Path:
    """A folder with all that the recorded runs need: models, adapters, a training run, items, tasks and the store."""
    shutil.copytree(DATA / "place", place, dirs_exist_ok=True)
    for name, folder in bundled_models().items():
        shutil.copytree(folder, place / "models" / name)
    rates = [{"step": step, "learning_rate": 1e-3} for step in CHECKPOINTS]
    for step, name in CHECKPOINTS.items():
        folder = place / "training" / f"checkpoint-{step}"
        shutil.copytree(place / "models" / name, folder)
        state = {"global_step": step, "log_history": rates}
        (folder / "trainer_state.json").write_text(json.dumps(state))
    packed = DATA / "store.sqlite.gz"
    if packed.is_file():
        (place / "store.sqlite").write_bytes(gzip.decompress(packed.read_bytes()))
    return place


def bundled_models() -> dict[str, Path]:
    """{recorded name: folder} of the bundled models, by the content of their weights."""
    names = {digest: name for name, digest in recorded("models").items()}
    folders = dict[str, Path]()
    for file in sorted((ROOT / "souping").rglob("model.safetensors")):
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        if digest in names:
            folders[names[digest]] = file.parent
    return folders


def table_sizes(store: Path) -> dict[str, int]:
    """Rows of the tables that grow if something is evaluated or scored."""
    with closing(sqlite3.connect(store)) as db:
        return {name: db.execute(f"SELECT COUNT(*) FROM {name}").fetchone()[0] for name in TABLES}


def selection_scores(run: Path) -> Any:
    """{candidate: {category: score}} on the select split."""
    return json.loads((run / "selection.json").read_text())["scores"]


def recorded_numbers(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a recorded run found, with its rows by their names of now."""
    found: dict[str, Any] = dict(row["numbers"])
    found["rows"] = {RENAMED.get(name, name): scores for name, scores in found["rows"].items()}
    return found


def numbers(run: Path) -> dict[str, Any]:
    """What a run found: the selection's scores, the soup, its bytes, the scores of every row, and all trials."""
    report = json.loads((run / "report.json").read_text())
    rows = dict[str, dict[str, float]]()
    for row in report["rows"]:
        categories = {name: score["mean"] for name, score in row["scores"].items()}
        rows[row["name"]] = {"": row["objective"]["mean"], **categories}
    trials = list[list[str | float]]()
    # A line begins with the trial's number, the recipe's id and the objective.
    for line in (run / "trials.csv").read_text().splitlines()[1:]:
        _, recipe, objective, *_ = line.split(",")
        trials.append([recipe, float(objective)])
    return {
        "recipe": report["recipe"]["id"],
        "weights": report["recipe"]["weights"],
        "soup": weights_digest(run / "soup"),
        "rows": rows,
        "selection": selection_scores(run),
        "trials": trials,
    }
