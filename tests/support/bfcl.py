"""Answers to BFCL's own questions, right and planted wrong, as a model would write them, and their scoring."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from souping.core.types import Item, Record
from souping.evaluate.bfcl import Environment, records, run_bfcl_eval
from souping.evaluate.bfcl.bfcl_benchmark import BfclBenchmark

CHAT = "I am sorry, none of these functions can do that"
UNMET = {
    **dict.fromkeys((f"simple_java_{n}" for n in (78, 83, 85, 86, 89, 90, 91)), "array of strings"),
    **dict.fromkeys((f"simple_java_{n}" for n in (1, 64, 67, 68)), "map"),
    **dict.fromkeys(
        (f"simple_java_{n}" for n in (22, 35, 36, 65)), "another type than the document's"
    ),
    **dict.fromkeys(
        ("parallel_multiple_26", "live_multiple_862-181-3"),
        "an argument that is not in the document",
    ),
    **dict.fromkeys(("live_simple_106-63-0", "live_simple_112-68-0"), "no value is allowed"),
    **dict.fromkeys(
        ("live_multiple_507-149-4", "live_multiple_964-207-0"),
        "a required argument without a value",
    ),
}
"""Items whose own answer bfcl-eval's checker cannot be brought to accept, and why: the most that a model can have is
less than 100 %."""


def answer_key(item: Item) -> dict[str, Any]:
    """The functions of an item's prompt, and the calls that bfcl-eval accepts."""
    assert isinstance(item.answer, dict)
    return item.answer


def messages(item: Item) -> list[dict[str, Any]]:
    """The only turn of an item's prompt."""
    assert not isinstance(item.prompt, str)
    return [dict(message) for message in item.prompt]


def right_answer(item: Item, planted: bool = False) -> str:
    """A text that BFCL's checker must accept; with `planted`, one value in it is wrong."""
    key = answer_key(item)
    calls = key["calls"]
    if calls == []:
        return CHAT
    if calls == "any":
        return "[anything(at_all=1)]"
    docs = {doc["name"]: doc["parameters"] for doc in key["functions"]}
    rest = [_call(one, docs, item.language) for one in calls[1:]]
    return f"[{', '.join([_call(calls[0], docs, item.language, planted), *rest])}]"


def wrong_answers(item: Item) -> dict[str, str]:
    """{what is wrong: text} that BFCL's checker must reject."""
    right = right_answer(item)
    calls = answer_key(item)["calls"]
    if calls == []:
        return {"a call where none may be": "[anything(at_all=1)]"}
    if calls == "any":
        return {"no call": CHAT}
    name = next(iter(calls[0]))
    planted = right_answer(item, planted=True)
    return {
        "another function": right.replace(f"{name}(", "not_this_one(", 1),
        "no call": CHAT,
        "a call too many": right[:-1] + f", {right[1:-1].split('), ')[0].rstrip(')')})]",
        "an argument that nobody asked for": right.replace("(", "(unasked_for=1, ", 1).replace(
            "1, )", "1)"
        ),
        **({"a wrong value": planted} if planted != right else {}),
    }


def _call(
    call: Mapping[str, Any], docs: Mapping[str, Any], language: str, planted: bool = False
) -> str:
    """One call in the syntax of the language; `planted` makes its first argument wrong."""
    ((name, arguments),) = call.items()
    schema = docs[name]
    written = {}
    for key, allowed in arguments.items():
        value = _choice(allowed, key in schema.get("required", ()))
        if value != "":
            written[key] = _value(value, schema["properties"].get(key) or {}, language)
    if planted and written:
        written[next(iter(written))] = '"planted by the test"'
    return f"{name}({', '.join(f'{key}={text}' for key, text in written.items())})"


def _choice(allowed: Sequence[Any], required: bool) -> Any:
    """The first allowed value; "" says that the argument may be left out, which does not help where it is required."""
    options = [value for value in allowed if value != ""] if required else allowed
    return options[0] if options else ""


def _value(value: Any, schema: Mapping[str, Any], language: str) -> str:
    """An allowed value as the language writes it, by the argument's type in the function's document."""
    if language == "python":
        return repr(_plain(value))
    kind = str(schema.get("type", "")).lower()
    text = value if isinstance(value, str) else json.dumps(_plain(value))
    if language == "java" and isinstance(value, list):
        inner = ", ".join(map(json.dumps, value))
        if kind == "arraylist":
            return f"new ArrayList<>(Arrays.asList({inner}))"
        return f"new Object[]{{{inner}}}"
    if language == "java" and kind == "long":
        return f"{text}L"
    if language == "java" and kind == "char":
        return f"'{text}'"
    # Some of BFCL's own answers are code already, as `new HashMap<>()`.
    quoted = kind in ("string", "any") and isinstance(value, str) and not text.startswith("new ")
    return f'"{value}"' if quoted else text


def _plain(value: Any) -> Any:
    """The value without BFCL's lists of allowed values inside objects."""
    if isinstance(value, dict):
        chosen = {
            key: options[0] if isinstance(options, list) and options else options
            for key, options in value.items()
        }
        return {key: _plain(one) for key, one in chosen.items() if one != ""}
    return [_plain(one) for one in value] if isinstance(value, list) else value


def score(
    environment: Environment,
    root: Path,
    items: Sequence[Item],
    answers: Mapping[str, Any],
    handler: str = "plain",
) -> list[Record]:
    """bfcl-eval's own verdict on answers, as result files of a model would hold them."""
    ids: dict[str, list[str]] = {}
    for item in items:
        ids.setdefault(item.category, []).append(item.id)
    name = handler.replace("/", "_")
    for category, own in ids.items():
        group = "multi_turn" if "multi_turn" in category else "non_live"
        if category.startswith("live"):
            group = "live"
        folder = root / "result" / name / group
        folder.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps({"id": item, "result": answers[item]}) for item in own]
        (folder / f"BFCL_v4_{category}_result.json").write_text("\n".join(lines) + "\n")
    run_bfcl_eval(environment, root, handler, ids)
    return records(root / "result" / name, root / "score" / name, items)


def shortest(bfcl: Environment, categories: Sequence[str], count: int) -> list[Item]:
    """The items of each category with the shortest prompts: they fit the demo's 512 tokens."""
    found = []
    for name in categories:
        items = BfclBenchmark(data=bfcl.data, categories=(name,)).items()
        found += sorted(
            (item for item in items if len(item.prompt) == 1), key=lambda item: len(prompt(item))
        )[:count]
    return found


def prompt(item: Item) -> str:
    """What the handler `plain` asks of a Python item; bfcl-eval adds the hint on the language."""
    hint = " Note that the provided function is in Python 3 syntax."
    docs = [
        json.dumps({**doc, "description": doc["description"] + hint})
        for doc in answer_key(item)["functions"]
    ]
    return "\n".join([*docs, *(f"User: {m['content']}" for m in messages(item)), "Call:"])
