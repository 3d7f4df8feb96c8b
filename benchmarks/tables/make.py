"""Truth tables for `benchmarks/search.py`: every soup of a grid on far more items than a search would see.

    python -m benchmarks.tables.make FAMILY [--out benchmarks/tables] [--work FOLDER] [--minutes 9]

FAMILY is demo3 (tuned_python, tuned_java, tuned_parallel), demo4 (tuned_live beside them), demo_other (three trained
here from the same base with other seeds and mixtures) or digits (five small networks, one base, five corruptions of
scikit-learn's digits). A soup that is done stays done: run it again to go on. A table holds

    w [S, K]      weights        ok [S, I]    right or wrong        cat [I], group [I]

Most answers of a soup equal, token by token, what a single model wrote. So one teacher-forced pass over those says
which of them greedy decoding would give; only the rest is generated.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from souping.search.points import uniform, vertices, weight_grid

SEED = 424_243
"""Seed of the items."""


def points(size: int) -> np.ndarray:
    """The paper's grid, uniform and the vertices, each once [S, K]; the vertices come last."""
    centre = uniform(size)
    inner = [
        point for point in weight_grid(size) if not np.allclose(point, centre, rtol=0, atol=1e-9)
    ]
    return np.array([*inner, centre, *vertices(size)])


@dataclass(frozen=True)
class DemoFamily:
    """DemoModels by their folders, and how many items of a category are asked."""

    models: tuple[str, ...]
    per_category: int


DEMO = {
    "demo3": DemoFamily(("tuned_python", "tuned_java", "tuned_parallel"), 400),
    "demo4": DemoFamily(("tuned_python", "tuned_java", "tuned_parallel", "tuned_live"), 120),
    "demo_other": DemoFamily(("other_mixed", "other_python", "other_parallel"), 150),
}


# ---------------------------------------------------------------- the demo


def train_others(work: Path) -> None:
    """Three more specialists of the shipped base, by other seeds and mixtures."""
    from examples.demo import items
    from examples.demo.stages import TrainingStage
    from examples.demo.tokenizer import vocabulary
    from examples.demo.train import train, write_model
    from souping.demo import BASE, path

    work.mkdir(parents=True, exist_ok=True)
    if not (work / BASE).exists():
        (work / BASE).symlink_to(path(BASE))
    asked = [*items.make(items.SEED, items.PER_CATEGORY), *items.make(SEED, 400)]
    held_out = frozenset(task.key for task in asked)
    mixes = {
        "other_mixed": (
            301,
            350,
            {"simple_java": 1.0, "live": 1.0, "irrelevance": 0.3, "others": 0.03},
        ),
        "other_python": (302, 350, {"simple_python": 1.0, "parallel": 1.0, "others": 0.03}),
        "other_parallel": (
            303,
            350,
            {"parallel_multiple": 1.0, "simple_javascript": 1.0, "multiple": 0.5, "others": 0.03},
        ),
    }
    for name, (seed, steps, mix) in mixes.items():
        if not (work / name).is_dir():
            stage = TrainingStage(
                name=name, parent=BASE, seed=seed, steps=steps, rate=1.5e-3, mix=mix
            )
            write_model(
                train(stage, work, vocabulary(), held_out, print), vocabulary(), work / name
            )


class DemoModels:
    """Models of a family as one module that becomes any of their soups, and the items that it is asked."""

    def __init__(self, family: DemoFamily, work: Path) -> None:
        import torch
        from transformers import AutoTokenizer

        from examples.demo.items import as_items, make
        from examples.demo.train import load
        from souping.demo import CANDIDATES, path

        torch.set_num_threads(1)
        if not set(family.models) <= set(CANDIDATES):
            train_others(work / "models")
        folders = [path(c) if c in CANDIDATES else work / "models" / c for c in family.models]
        models = [load(folder) for folder in folders]
        self.states = [deepcopy(model.state_dict()) for model in models]
        self.model = models[0].train(False)
        self.tokenizer = AutoTokenizer.from_pretrained(folders[0])
        self.tasks = make(SEED, family.per_category)
        self.items = as_items(self.tasks)
        self.prompts = self.tokenizer([task.prompt for task in self.tasks])["input_ids"]

    def load_soup(self, weights: Sequence[float]) -> None:
        """Mean of the weights, stored in bfloat16 as a soup on disk is."""
        import torch

        parts = list(zip(weights, self.states, strict=True))
        soup = {}
        for key in self.states[0]:
            mean = sum(weight * state[key] for weight, state in parts if weight)
            soup[key] = torch.as_tensor(mean).bfloat16().float()
        self.model.load_state_dict(soup)

    def written(self, which: Sequence[int]) -> list[str]:
        from transformers import PreTrainedTokenizerFast

        from examples.demo.train import answers

        assert isinstance(self.tokenizer, PreTrainedTokenizerFast)
        return answers(self.model, self.tokenizer, [self.tasks[i].prompt for i in which])

    def score(self, item: int, answer: str) -> float:
        from souping.evaluate.scoring import score

        return float(score(self.items[item], answer))

    def ids(self, answer: str) -> list[int]:
        return [
            *self.tokenizer(answer, add_special_tokens=False)["input_ids"],
            self.tokenizer.eos_token_id,
        ]

    def read(self, texts: list[list[str]], batch: int = 32) -> list[np.ndarray]:
        """Whether greedy decoding would write each item's texts.

        All texts of an item lie behind one copy of its prompt; none sees another.
        """
        greedy: list[np.ndarray] = [np.zeros(0)] * len(texts)
        ids = [list(map(self.ids, row)) for row in texts]
        length = [len(p) + sum(map(len, row)) for p, row in zip(self.prompts, ids, strict=True)]
        order = [i for i in np.argsort(length, kind="stable") if texts[i]]
        for start in range(0, len(order), batch):
            chunk = order[start : start + batch]
            found = self._forward([self.prompts[i] for i in chunk], [ids[i] for i in chunk])
            for i, same in zip(chunk, found, strict=True):
                greedy[i] = same
        return greedy

    def _forward(self, prompts: list[list[int]], texts: list[list[list[int]]]) -> list[np.ndarray]:
        import torch

        width = max(len(p) + sum(map(len, row)) for p, row in zip(prompts, texts, strict=True))
        tokens = torch.zeros((len(prompts), width), dtype=torch.long)
        place = torch.zeros((len(prompts), width), dtype=torch.long)
        seen = torch.eye(width, dtype=torch.bool).repeat(len(prompts), 1, 1)
        spans: list[tuple[int, list[int], list[int]]] = []
        for row, (prompt, answers) in enumerate(zip(prompts, texts, strict=True)):
            end = len(prompt)
            tokens[row, :end] = torch.tensor(prompt)
            place[row, :end] = torch.arange(end)
            seen[row, :end, :end] = torch.tril(torch.ones(end, end, dtype=torch.bool))
            for answer in answers:
                stop = end + len(answer)
                tokens[row, end:stop] = torch.tensor(answer)
                place[row, end:stop] = torch.arange(len(prompt), len(prompt) + len(answer))
                seen[row, end:stop, : len(prompt)] = True
                seen[row, end:stop, end:stop] = torch.tril(
                    torch.ones(len(answer), len(answer), dtype=torch.bool)
                )
                spans.append((row, [len(prompt) - 1, *range(end, stop - 1)], answer))
                end = stop
        with torch.inference_mode():
            hidden = self.model.model(
                input_ids=tokens, attention_mask=seen[:, None], position_ids=place, use_cache=False
            ).last_hidden_state
            flat = torch.cat([hidden[row, where] for row, where, _ in spans])
            logits = self.model.lm_head(flat)
            target = torch.tensor([t for *_, answer in spans for t in answer])
            same = (logits.argmax(-1) == target).numpy()
        cuts = np.cumsum([len(answer) for *_, answer in spans])[:-1]
        whole = np.array([bool(part.all()) for part in np.split(same, cuts)])
        return np.split(whole, np.cumsum([len(row) for row in texts])[:-1])


def demo(name: str, work: Path, end: float) -> dict[str, np.ndarray] | None:
    """The table of a family; None where time ran out before it was whole."""
    family = DEMO[name]
    models = DemoModels(family, work)
    w = points(len(family.models))
    singles = _singles(models, work / f"{name}-singles.npz", len(family.models))
    unique = [list(dict.fromkeys(row)) for row in singles]
    rows = []
    for number, weights in enumerate(w):
        kept = work / f"{name}-{number}.npz"
        if not kept.exists():
            if time.monotonic() > end:
                return None
            started = time.monotonic()
            np.savez(kept, ok=_soup(models, weights, unique))
            print(
                f"{name}: soup {number + 1} of {len(w)}, {time.monotonic() - started:.1f} s",
                flush=True,
            )
        with np.load(kept) as saved:
            rows.append(saved["ok"])
    cats = [item.category for item in models.items]
    groups = [item.group for item in models.items]
    return {"w": w, "cat": _codes(cats), "group": _codes(groups), "ok": np.stack(rows)}


def _singles(models: DemoModels, kept: Path, size: int) -> list[list[str]]:
    """[I][K] answers of the single models."""
    if not kept.exists():
        columns = []
        for weights in vertices(size):
            models.load_soup(weights)
            columns.append(models.written(range(len(models.tasks))))
        np.savez(kept, answers=np.array(columns).T)
    with np.load(kept) as saved:
        return [list(map(str, row)) for row in saved["answers"]]


def _soup(models: DemoModels, weights: np.ndarray, unique: list[list[str]]) -> np.ndarray:
    """Whether each item's answer is right [I]."""
    models.load_soup(weights.tolist())
    greedy = models.read(unique)
    ok = np.full(len(unique), np.nan)
    for i, texts in enumerate(unique):
        answers = [text for text, is_greedy in zip(texts, greedy[i], strict=True) if is_greedy]
        if answers:
            ok[i] = models.score(i, answers[0])

    # The greedy answer is none of the known ones: the model writes it.
    unknown = np.flatnonzero(np.isnan(ok)).tolist()
    for i, text in zip(unknown, models.written(unknown), strict=True):
        ok[i] = models.score(i, text)
    return ok.astype(bool)


def _codes(names: Sequence[str]) -> np.ndarray:
    known = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([known[name] for name in names], dtype=np.int32)


# ---------------------------------------------------------------- digits


def corruptions() -> dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]]:
    """Five ways to spoil images [N, 8, 8] with values in 0..1."""
    from scipy.ndimage import gaussian_filter, rotate

    def occluded(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        spoilt = x.copy()
        for image in spoilt:
            a, b = rng.integers(1, 4, 2)
            image[a : a + 3, b : b + 3] = 0
        return spoilt

    return {
        "noise": lambda x, rng: x + rng.normal(0, 0.45, x.shape),
        "turned": lambda x, rng: np.stack(
            [rotate(i, rng.uniform(25, 60), reshape=False, order=1) for i in x]
        ),
        "shifted": lambda x, rng: np.stack(
            [np.roll(i, rng.choice((-2, 2)), rng.integers(2)) for i in x]
        ),
        "blurred": lambda x, rng: gaussian_filter(x, (0, 1.1, 1.1)) + rng.normal(0, 0.05, x.shape),
        "occluded": occluded,
    }


def digits(images: int = 300, size: int = 128) -> dict[str, np.ndarray]:
    """One base network, five fine-tuned on a corruption each; an item is a test image under a corruption."""
    from sklearn.datasets import load_digits

    data = load_digits()
    rng = np.random.default_rng(7)
    order = rng.permutation(len(data.target))
    x = data.images[order] / 16.0
    y = data.target[order]
    test = slice(0, images)
    train = slice(images, None)
    spoil = corruptions()
    base = _fit(None, x[train], y[train], size, 60, 3e-3)
    experts = [_fit(base, f(x[train], rng), y[train], size, 10, 2e-3) for f in spoil.values()]
    asked = [f(x[test], rng).reshape(images, -1) for f in spoil.values()]
    inputs = np.concatenate(asked)
    truth = np.tile(y[test], len(asked))
    w = points(len(experts))
    rows = []
    for weights in w:
        soup = []
        for layer in range(len(base)):
            scaled = [share * expert[layer] for share, expert in zip(weights, experts, strict=True)]
            soup.append(sum(scaled))
        rows.append(_logits(soup, inputs).argmax(1) == truth)
    cat = np.repeat(np.arange(len(asked), dtype=np.int32), images)
    group = np.tile(np.arange(images, dtype=np.int32), len(asked))
    return {"w": w, "cat": cat, "group": group, "ok": np.stack(rows)}


def _fit(
    base: list[np.ndarray] | None, x: np.ndarray, y: np.ndarray, size: int, epochs: int, rate: float
) -> list[np.ndarray]:
    """Weights and biases of a network of two hidden layers, by Adam."""
    import torch

    torch.manual_seed(11)
    shapes = [(64, size), (size,), (size, size), (size,), (size, 10), (10,)]
    start = base or [
        np.random.default_rng(3).normal(0, (2 / s[0]) ** 0.5 if len(s) > 1 else 0, s)
        for s in shapes
    ]
    given = [torch.tensor(v, dtype=torch.float32, requires_grad=True) for v in start]
    optimiser = torch.optim.Adam(given, lr=rate)
    inputs = torch.tensor(x.reshape(len(x), -1), dtype=torch.float32)
    labels = torch.tensor(y)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(64):
            optimiser.zero_grad()
            hidden = torch.relu(
                torch.relu(inputs[rows] @ given[0] + given[1]) @ given[2] + given[3]
            )
            loss = torch.nn.functional.cross_entropy(hidden @ given[4] + given[5], labels[rows])
            torch.autograd.backward(loss)
            optimiser.step()
    return [v.detach().double().numpy() for v in given]


def _logits(given: list[np.ndarray], x: np.ndarray) -> np.ndarray:
    hidden = np.maximum(np.maximum(x @ given[0] + given[1], 0) @ given[2] + given[3], 0)
    return np.asarray(hidden @ given[4] + given[5])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("family", choices=[*DEMO, "digits"])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--work", type=Path, default=Path("/tmp/souping-tables"))
    parser.add_argument("--minutes", type=float, default=1e9)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * given.minutes
    table = digits() if given.family == "digits" else demo(given.family, given.work, end)
    if table is None:
        print("not done yet: run it again")
        return
    np.savez_compressed(given.out / f"{given.family}.npz", allow_pickle=True, **table)
    truth = np.stack([table["ok"][:, table["cat"] == c].mean(1) for c in np.unique(table["cat"])])
    mean = truth.mean(0)
    print(
        f"{given.family}: {table['ok'].shape}, best {mean.max():.4f}, uniform {mean[-1 - table['w'].shape[1]]:.4f},"
    )
    print(f"singles {mean[-table['w'].shape[1] :].round(4)}; best at {table['w'][mean.argmax()]}")


if __name__ == "__main__":
    main()
