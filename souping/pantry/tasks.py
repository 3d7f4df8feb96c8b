"""Questions about functions, in the shape of BFCL: the generators of the pantry's categories.

A task is a prompt (language, function docs, question) and its answer (a call, calls, or a refusal). Everything is
drawn from the random generators that the caller hands in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from souping.core import digest
from souping.pantry.functions import (
    CHECKED,
    Call,
    Function,
    article,
    draw_call,
    draw_default,
    draw_function,
    near,
    schema,
)
from souping.pantry.words import NUMBER_WORDS, VERBS, Value

REFUSAL = "No function fits."


@dataclass(frozen=True)
class Task:
    """A prompt with its answer: `gold` is the text that a perfect model writes, `answer` what the scorer compares."""

    category: str
    group: str
    prompt: str
    gold: str
    answer: Any
    language: str

    @property
    def key(self) -> str:
        """Identity by content: no training example shares it with an item."""
        return digest(self.prompt)


def phrase(template: str, value: Value) -> str:
    if isinstance(value, bool):
        return template.split("|")[0 if value else 1]
    return template.format(*value) if isinstance(value, tuple) else template.format(value)


def phrases(call: Call) -> str:
    """The slots in plain words, in the order of the docs."""
    pairs = zip(call.function.slots, call.values, strict=False)
    return " ".join(phrase(slot.plain, value) for slot, value in pairs)


def request(call: Call) -> str:
    return f"{call.function.verb} {article(call.function.thing)} {phrases(call)}"


def plainly(rng: Random, text: str) -> str:
    opening = rng.choice(("", "please ", "I want to "))
    text = opening + text
    return text[0].upper() + text[1:] + "."


def lively(rng: Random, call: Call) -> str:
    """The same request as people put it: other verbs, other words for slots, any order, numbers as words."""
    verb = rng.choice(VERBS[call.function.verb])
    parts = []
    for slot, value in zip(call.function.slots, call.values, strict=False):
        said = _in_words(value) if slot.kind == "integer" and rng.random() < 0.5 else value
        parts.append(phrase(rng.choice(slot.live), said))
    rng.shuffle(parts)
    what = f"{verb} {article(call.function.thing)}"
    shape = rng.choice(("Hi, can you {what}? {parts}, thanks.", "{parts}, so {what} now!", "{what}: {parts}, ok?"))
    text = shape.format(what=what, parts=", ".join(parts))
    return text[0].upper() + text[1:]


def _in_words(value: Value) -> Value:
    return NUMBER_WORDS[value] if isinstance(value, int) and value < len(NUMBER_WORDS) else value


def docs_of(functions: Sequence[Function], language: str) -> str:
    titles = {"python": "Python", "java": "Java", "javascript": "JavaScript"}
    return f"{titles[language]}:\n" + "\n".join(function.doc(language) for function in functions)


def finish(
    category: str, functions: Sequence[Function], question: str, calls: Sequence[Call], language: str = "python"
) -> Task:
    """Put docs and question into the prompt, and the calls into text and checkable form."""
    docs = docs_of(functions, language)
    texts = [call.text(language) for call in calls]
    gold = REFUSAL if not texts else texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"
    answer: Any = [call.allowed(language) for call in calls]
    if language in CHECKED:
        answer = {"calls": answer, "functions": [schema(function, language) for function in functions]}
    group = f"{category}-{digest(docs)[:10]}"
    return Task(category, group, f"{docs}\nQuestion: {question}\nCall:", gold, answer, language)


def _simple(category: str, language: str) -> Callable[[Random, Random], Task]:
    def make(scene: Random, rng: Random) -> Task:
        function = draw_function(scene)
        if language == "python":
            function = draw_default(scene, function)
        call = draw_call(rng, function)
        return finish(category, [function], plainly(rng, request(call)), [call], language)

    return make


def _multiple(scene: Random, rng: Random) -> Task:
    function = draw_function(scene, sizes=(2,))
    others = [near(scene, function)]
    while len(others) < 2:
        others += [other for other in [near(scene, function)] if other.name("python") != others[0].name("python")]
    call = draw_call(rng, function)
    functions = [function, *others]
    scene.shuffle(functions)
    return finish("multiple", functions, plainly(rng, request(call)), [call])


def _parallel(scene: Random, rng: Random) -> Task:
    function = draw_function(scene, sizes=(2,))
    calls = [draw_call(rng, function), draw_call(rng, function)]
    while calls[0] == calls[1]:
        calls[1] = draw_call(rng, function)
    question = plainly(rng, f"{request(calls[0])}, and also one {phrases(calls[1])}")
    return finish("parallel", [function], question, calls)


def _parallel_multiple(scene: Random, rng: Random) -> Task:
    first = draw_function(scene, sizes=(1, 2))
    second = near(scene, first)
    calls = [draw_call(rng, first), draw_call(rng, second)]
    functions = [first, second]
    scene.shuffle(functions)
    question = plainly(rng, f"{request(calls[0])}, then {request(calls[1])}")
    return finish("parallel_multiple", functions, question, calls)


def _live(scene: Random, rng: Random) -> Task:
    function = draw_default(scene, draw_function(scene))
    call = draw_call(rng, function)
    functions = [function, near(scene, function)][: scene.choice((1, 2))]
    scene.shuffle(functions)
    return finish("live", functions, lively(rng, call), [call])


def _irrelevance(scene: Random, rng: Random) -> Task:
    asked = draw_function(scene)
    functions = [near(scene, asked)]
    other = near(scene, asked)
    if other.name("python") != functions[0].name("python"):
        functions.append(other)
    call = draw_call(rng, asked)
    question = lively(rng, call) if scene.random() < 0.5 else plainly(rng, request(call))
    return finish("irrelevance", functions, question, [])


MAKERS: dict[str, Callable[[Random, Random], Task]] = {
    "simple_python": _simple("simple_python", "python"),
    "simple_java": _simple("simple_java", "java"),
    "simple_javascript": _simple("simple_javascript", "javascript"),
    "multiple": _multiple,
    "parallel": _parallel,
    "parallel_multiple": _parallel_multiple,
    "live": _live,
    "irrelevance": _irrelevance,
}
"""Each maker takes two generators: `scene` draws the functions, the other one the question about them."""
CATEGORIES = tuple(MAKERS)
