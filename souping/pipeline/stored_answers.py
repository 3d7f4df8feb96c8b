"""Answers of one soup under one evaluator as the store gives them: by question, number of the answer, and block."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np

from souping.core.types import OUTCOMES, Item, Record


class StoredAnswers:
    """Answers of one soup under one evaluator, with their scores."""

    def __init__(self) -> None:
        self._answers: dict[tuple[str, int, str], Record] = {}
        self._tokens: dict[tuple[str, int, str], bytes] = {}  # as numbers they take nine times the memory
        self._grades: dict[tuple[str, int, str], dict[str, tuple[float, str]]] = {}
        self._blocks: dict[tuple[str, int], set[str]] = {}
        self._firsts: set[tuple[str, str]] = set()

    def take(
        self,
        question: str,
        replicate: int,
        block: str,
        name: str,
        output: str,
        outcome: str,
        reason: str,
        tokens: bytes,
        prompt_tokens: int,
        prompt_key: str,
        seconds: float | None,
        scorer: str | None,
        score: float | None,
        counts: str | None,
    ) -> None:
        """Take in one row: an answer with one of its scores, if it has any."""
        key = (question, replicate, block)
        if key not in self._answers:
            self._answers[key] = Record(
                item=name,
                score=math.nan,
                output=output,
                outcome=OUTCOMES[OUTCOMES.index(outcome)],
                reason=reason,
                replicate=int(replicate),
                prompt_tokens=int(prompt_tokens),
                prompt_key=prompt_key,
                seconds=float(seconds or 0.0),
            )
            self._tokens[key] = np.frombuffer(tokens, "<i4").tobytes()
        if scorer is not None and score is not None:
            self._grades.setdefault(key, {})[scorer] = (float(score), counts or "")
            self._blocks.setdefault((question, replicate), set()).add(block)
            if not replicate:
                self._firsts.add((question, scorer))

    def answer(self, item: Item, replicate: int, block: str) -> Record | None:
        """The answer, without its score and its tokens."""
        return self._answers.get((item.question, replicate, block))

    def __len__(self) -> int:
        """Number of answers."""
        return len(self._answers)

    def anywhere(self, item: Item) -> bool:
        """Whether its first answer is there with its score, in whatever block."""
        return (item.question, item.scoring) in self._firsts

    def first(self, item: Item, replicate: int = 0) -> Record | None:
        """Its answer of this number with its score, in whatever block, that with the lowest digest of several."""
        blocks = sorted(self._blocks.get((item.question, replicate), ()))
        return next((record for block in blocks if (record := self.graded(item, replicate, block)) is not None), None)

    def graded(self, item: Item, replicate: int, block: str) -> Record | None:
        """The answer with its score, if both are there."""
        key = (item.question, replicate, block)
        grade = self._grades.get(key, {}).get(item.scoring)
        if grade is None:
            return None
        score, counts = grade
        statistics, tokens = json.loads(counts) if counts else (), np.frombuffer(self._tokens[key], "<i4").tolist()
        return replace(self._answers[key], score=score, statistics=tuple(statistics), tokens=tuple(tokens))
