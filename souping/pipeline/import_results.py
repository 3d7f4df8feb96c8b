"""Answers measured elsewhere, checked and stored as the rows that the run would have written itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from math import prod
from pathlib import Path

from souping.checkpoints.checkpoint import Checkpoint
from souping.core.files import folder_at
from souping.core.imported import CandidateFacts, Difference, ImportedAnswers, compare
from souping.core.protocols import Evaluator
from souping.core.text import nearest
from souping.core.types import Candidate, Item, Json, Recipe, UserError
from souping.pipeline.models import OpenPool
from souping.pipeline.store import IMPORTED, Store

HEADS = ("lm_head.weight", "embed_out.weight")
"""Tensors that are the embedding again in a model that ties them; some files hold them, and no count includes them."""


@dataclass(frozen=True, kw_only=True)
class AskedBenchmark:
    """Benchmark of the run: its evaluator and its items."""

    evaluator: Evaluator
    items: tuple[Item, ...]


@dataclass(frozen=True, kw_only=True)
class Request:
    """Request of the user: where the files lie, {name in the files: candidate}, differences to accept, and whether
    to write at all."""

    paths: Sequence[Path]
    called: Mapping[str, str] = field(default_factory=dict)
    accept: frozenset[str] = frozenset()
    write: bool = True


@dataclass(frozen=True, kw_only=True)
class ImportRow:
    """Outcome of one file: `adopted` rows are new in the store, `present` were there; `refused` says why not."""

    candidate: str
    task: str
    source: Path
    adopted: int = 0
    present: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict)
    refused: str = ""
    stranger: bool = False
    accepted: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()


def adopt(pool: OpenPool, store: Store, benchmarks: Sequence[AskedBenchmark], request: Request) -> list[ImportRow]:
    """A row for every task that the files hold answers of, newest files first.

    Raises:
        UserError: nothing is there to adopt, a file is broken, or `accept` names a difference that is none.
    """
    strangers, measured = [], []
    own = [replace(b, evaluator=pool.bound(b.evaluator)) for b in benchmarks]
    for benchmark in own:
        for files in benchmark.evaluator.find_results(request.paths):
            name = whose(files.model, pool.candidates, request.called)
            if name is None:
                strangers.append(_stranger(files.model, files.path, pool.names))
                continue
            facts = facts_of(next(c for c in pool.candidates if c.name == name))
            recipe = pool.recipe({name: 1.0})
            asked = replace(benchmark, evaluator=asking(benchmark.evaluator, recipe))
            cast = compare("merge.dtype", facts.dtype, recipe.dtype) if facts.dtype else []
            tokenizer = pool.pool.tokenizer_folder(recipe)
            for answers in asked.evaluator.read_results(files, asked.items, facts, tokenizer):
                measured.append((asked, name, replace(answers, differences=(*cast, *answers.differences))))
    _check(len(strangers) + len(measured), [answers for _, _, answers in measured], request)
    return [*(_take(pool, store, *one, request) for one in measured), *strangers]


def asking(evaluator: Evaluator, single: Recipe) -> Evaluator:
    """The evaluator as it asks this single: one with prompt handlers has one for each candidate."""
    return evaluator.by(evaluator.choices(single)[0])


def whose(model: str, candidates: Sequence[Candidate], called: Mapping[str, str]) -> str | None:
    """The candidate that the files call `model`: as the user says, by its place, its Hub name, or its own name."""
    if model in called:
        return called[model]
    if not model:  # files that do not say
        return None
    for c in candidates:
        repo = c.source.split("@")[0]
        if model in (c.source, repo, repo.replace("/", "_")) or folder_at(model) == c.path.resolve():
            return c.name
    own = [c.name for c in candidates if {Path(model).name, model.partition("_")[2]} & {c.name, c.path.name}]
    return own[0] if len(own) == 1 else None


def facts_of(candidate: Candidate) -> CandidateFacts:
    """A candidate as its files show it. What came from the Hub is known by its commit; its file times say nothing."""
    repo, _, commit = candidate.source.partition("@")
    weights = [p for p in candidate.path.iterdir() if p.suffix in (".safetensors", ".bin")]
    checkpoint = _headers(candidate.path)
    return CandidateFacts(
        name=candidate.name,
        path=candidate.path,
        hub=repo or None,
        commit=commit or None,
        parameters=_parameters(checkpoint) if checkpoint else frozenset(),
        dtype=checkpoint.dtype if checkpoint else None,
        written=None if repo else max((p.stat().st_mtime for p in weights), default=None),
    )


def _headers(folder: Path) -> Checkpoint | None:
    """None for an adapter, whose base has the parameters, and for pickles, which the run was allowed to read."""
    try:
        return Checkpoint.open(folder)
    except UserError:
        return None


def _parameters(checkpoint: Checkpoint) -> frozenset[int]:
    counts = {name: prod(tensor.shape) for name, tensor in checkpoint.tensors.items()}
    whole = sum(counts.values())
    return frozenset({whole, *(whole - counts[name] for name in HEADS if name in counts)})


def _stranger(model: str, path: Path, names: Sequence[str]) -> ImportRow:
    hint = nearest(Path(model).name, names) or f" ({', '.join(names)})"
    return ImportRow(
        candidate="-",
        task="-",
        source=path,
        stranger=True,
        refused=f"no candidate is {model!r}{hint}: say which with --candidate NAME={model}",
    )


def _take(
    pool: OpenPool, store: Store, asked: AskedBenchmark, name: str, answers: ImportedAnswers, request: Request
) -> ImportRow:
    """Write what the files prove; nothing where they and the run disagree."""
    open_ = [d for d in answers.differences if not (d.mild and d.key in request.accept)]
    accepted = tuple(sorted({d.key for d in answers.differences} - {d.key for d in open_}))
    if open_:
        return ImportRow(candidate=name, task=answers.task, source=answers.source, refused=_refusal(open_))
    recipe, evaluator = pool.recipe({name: 1.0}), asked.evaluator
    known = store.load(recipe.fingerprint, evaluator.fingerprint)
    items = [item for item in asked.items if item.id in answers.records]
    fresh = [item for item in items if not known.anywhere(item)]
    if request.write and fresh:
        records = [answers.records[item.id] for item in fresh]
        store.add(recipe, evaluator.fingerprint, evaluator.settings, IMPORTED, fresh, records)
        store.note_adoption(recipe.fingerprint, evaluator.fingerprint, _origin(name, answers, len(fresh), accepted))
    return ImportRow(
        candidate=name,
        task=answers.task,
        source=answers.source,
        adopted=len(fresh),
        present=len(items) - len(fresh),
        skipped=answers.skipped,
        accepted=accepted,
        unchecked=answers.unchecked,
    )


def _refusal(differences: Sequence[Difference]) -> str:
    first = next((d for d in differences if not d.mild), differences[0])
    more = f", and {len(differences) - 1} more" if len(differences) > 1 else ""
    if not all(d.mild for d in differences):
        return f"{first.sentence}{more}"
    keys = " ".join(f"--accept {key}" for key in dict.fromkeys(d.key for d in differences))
    return f"{first.sentence}{more} ({keys} takes the answers nevertheless)"


def _origin(name: str, answers: ImportedAnswers, count: int, accepted: Sequence[str]) -> dict[str, Json]:
    """What the store keeps of an adoption, for whoever asks later where rows came from."""
    return {
        "candidate": name,
        "task": answers.task,
        "items": count,
        "source": str(answers.source),
        "accepted": list(accepted),
        "unchecked": list(answers.unchecked),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _check(count: int, measured: Sequence[ImportedAnswers], request: Request) -> None:
    """Before anything is written: there is something, and `accept` names differences that are there."""
    if not count:
        raise UserError(
            f"{', '.join(map(str, request.paths))}: nothing to adopt of what the run asks: neither samples_*.jsonl "
            "beside their results_*.json (lm_eval --log_samples --output_path DIR) nor a result folder of BFCL"
        )
    mild = sorted({d.key for one in measured for d in one.differences if d.mild})
    odd = sorted(request.accept - set(mild))
    if odd:
        known = f" ({', '.join(mild)})" if mild else ": there is none that can be accepted"
        raise UserError(f"--accept {odd[0]} names no difference found here{nearest(odd[0], mild) or known}")


def adopted_notes(pool: OpenPool, store: Store, evaluator: Evaluator) -> list[str]:
    """What a reader of the run's report must know of rows that the run did not measure."""
    counts: Counter[str] = Counter()
    accepted: set[str] = set()
    for name in pool.names:
        recipe = pool.recipe({name: 1.0})
        for origin in store.adoptions(recipe.fingerprint, asking(evaluator, recipe).fingerprint):
            counts[name] += origin["items"]
            accepted |= set(origin["accepted"])
    if not counts:
        return []
    who = ", ".join(f"{name} ({count} items)" for name, count in counts.items())
    spite = f", in spite of differences in {', '.join(sorted(accepted))}" if accepted else ""
    return [f"answers measured elsewhere were adopted for {who}{spite}"]


def totals(rows: Sequence[ImportRow]) -> Counter[str]:
    """Counts of adopted, present and refused; files of models that are no candidates are nobody's loss."""
    count = Counter(adopted=sum(r.adopted for r in rows), present=sum(r.present for r in rows))
    count["refused"] = sum(bool(r.refused) and not r.stranger for r in rows)
    return count
