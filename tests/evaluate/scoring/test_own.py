"""Scorers of the user's: where they come from, what keys their scores, what is told of their faults, and the judge."""

from __future__ import annotations

import importlib
import json
import sqlite3
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from souping.core.types import Item, UserError
from souping.evaluate.benchmark import Benchmark
from souping.evaluate.scoring import load_scorers, score
from souping.evaluate.scoring.judge import Judge
from souping.evaluate.servers.server_process import ServerError
from tests.conftest import Cli, pool_of
from tests.support.http import FakeServer, Handler, serving

LENGTHS = '''"""Scorers."""
calls = []

def short(item, output):
    calls.append(item.id)
    return float(len(output) < {limit})

def broken(item, output):
    return [][1]

def beyond(item, output):
    return 2

class Kind:
    pass
'''


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module of the user's, in the folder that runs start from."""
    path = tmp_path / "my_scorers.py"
    path.write_text(LENGTHS.format(limit=4))
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("my_scorers", None)
    yield path
    sys.modules.pop("my_scorers", None)


def anew(module: Path, limit: int) -> None:
    """The scorers of the page with another limit, as if nobody had imported them yet."""
    module.write_text(LENGTHS.format(limit=limit))
    importlib.invalidate_caches()
    sys.modules.pop("my_scorers", None)


def written(path: Path, scorer: str = "short") -> Path:
    path.write_text(
        json.dumps({"id": "1", "category": "c", "prompt": "p", "answer": "a", "scorer": scorer})
        + "\n"
    )
    return path


def test_an_item_gets_the_function_and_its_source_is_in_the_key(
    module: Path, tmp_path: Path
) -> None:
    items = written(tmp_path / "items.jsonl")
    asked = [Benchmark(path=str(items), scorers={"short": "my_scorers.short"}).items()[0]]
    assert [score(asked[0], text) for text in ("abc", "abcd")] == [1.0, 0.0]
    for limit in (4, 9):
        anew(module, limit)
        asked += Benchmark(path=str(items), scorers={"short": "my_scorers.short"}).items()
    assert asked[0].scorer_digest == asked[1].scorer_digest != asked[2].scorer_digest
    assert asked[0].answer_digest == asked[2].answer_digest


@pytest.mark.parametrize("scorer", ["compiled", "builtin"])
def test_a_scorer_without_python_source_is_refused(
    module: Path, tmp_path: Path, scorer: str
) -> None:
    """What decides its scores could change without another key."""
    text = "import struct, math\ncompiled = struct.Struct('i').pack\nbuiltin = math.sqrt\n"
    module.write_text(text)
    importlib.invalidate_caches()
    with pytest.raises(UserError, match=f"my_scorers.{scorer} has no Python source"):
        load_scorers({"own": f"my_scorers.{scorer}"})


def test_a_file_alone_imports_nothing(module: Path, tmp_path: Path) -> None:
    items = written(tmp_path / "items.jsonl", "my_scorers.short")
    with pytest.raises(UserError, match=r"(?s)items.jsonl:1: .*scorer=.*benchmark.scorers="):
        Benchmark(path=str(items)).items()


@pytest.mark.parametrize(
    ("name", "path", "told"),
    [
        ("exact", "my_scorers.short", "exact is a built-in scorer"),
        ("own", "my_scorers.shrt", "no attribute .shrt"),
        ("own", "my_scorers.Kind", "is not a function"),
    ],
)
def test_a_scorer_that_cannot_be_used_is_refused(
    module: Path, name: str, path: str, told: str
) -> None:
    with pytest.raises(UserError, match=told):
        load_scorers({name: path})


@pytest.mark.parametrize(
    ("name", "told"), [("broken", "IndexError"), ("beyond", "gives 2 for item 1")]
)
def test_a_fault_names_the_scorer_its_file_and_the_item(
    module: Path, tmp_path: Path, name: str, told: str
) -> None:
    (one,) = Benchmark(
        path=str(written(tmp_path / "i.jsonl", name)), scorers={name: f"my_scorers.{name}"}
    ).items()
    with pytest.raises(UserError, match=rf"scorer {name}: .*my_scorers.py:\d+.*{told}"):
        score(one, "x")


def quick_run(family: Path, place: Path, scorer: str) -> list[str]:
    """Arguments of a search over two candidates, on items with the scorer `own`."""
    rows = [json.loads(line) for line in (family / "items.jsonl").read_text().splitlines()]
    (place / "items.jsonl").write_text(
        "".join(json.dumps({**row, "scorer": "own"}) + "\n" for row in rows)
    )
    words = [word for word in pool_of(family, "ant", "bee") if not word.startswith("benchmark.")]
    words += ["benchmark.path=items.jsonl", f"benchmark.scorers={{own: my_scorers.{scorer}}}"]
    return [*words, "selector=all", "optimiser=uniform", "stop_after=search", "dry_run=2"]


def counted(place: Path, what: str) -> int:
    with closing(sqlite3.connect(place / "outputs/store.sqlite")) as db:
        return int(
            db.execute(f"SELECT COUNT({what.split()[0]}) FROM {what.split()[1]}").fetchone()[0]
        )


def test_a_new_scorer_rescores_old_answers(
    family: Path, module: Path, souping: Cli, tmp_path: Path
) -> None:
    words = quick_run(family, tmp_path, "short")
    assert souping(*words).code == 0
    answers = counted(tmp_path, "* answers")
    grades = counted(tmp_path, "* grades")
    anew(module, 2)
    assert souping(*words).code == 0
    assert (counted(tmp_path, "* answers"), counted(tmp_path, "* grades")) == (answers, 2 * grades)
    souping(*quick_run(family, tmp_path, "broken")).refused(
        "scorer own", "IndexError", "my_scorers.py"
    )
    assert counted(tmp_path, "* answers") == answers


@pytest.fixture
def endpoint() -> Iterator[FakeServer]:
    """An OpenAI-compatible server that says yes where the graded answer is right."""
    with serving() as server:
        server.answer = graded_by()
        yield server


def graded_by(reply: str = "", failures: Sequence[int] = ()) -> Callable[[Handler, Any], None]:
    """Responses of a judge: first these failures, then `reply` or its verdict."""
    waiting = list(failures)

    def answer(handler: Handler, body: Any) -> None:
        status = waiting.pop(0) if waiting else 200
        text = reply or ("Yes." if "graded: right" in body["messages"][-1]["content"] else "No.")
        handler.say({"choices": [{"message": {"role": "assistant", "content": text}}]}, status)

    return answer


QUESTION = Item(id="1", category="c", prompt="What is $5?", answer="right")


def judge(endpoint: FakeServer, **more: Any) -> Judge:
    prompt = "asked: $question wanted: $reference graded: $answer"
    return Judge(
        **{
            "model": "small",
            "url": f"{endpoint.url}/v1",
            "key": "",
            "prompt": prompt,
            "pause": 0.0,
            **more,
        }
    )


def test_a_judge_asks_at_temperature_0_and_reads_the_verdict(endpoint: FakeServer) -> None:
    own = judge(endpoint, system="Be strict.")
    assert [own(QUESTION, text) for text in ("right", "wrong")] == [1.0, 0.0]
    body = endpoint.requests[0][1]
    assert (body["model"], body["temperature"]) == ("small", 0)
    assert [message["content"] for message in body["messages"]] == [
        "Be strict.", "asked: What is $5? wanted: right graded: right",
    ]  # fmt: skip


def test_a_key_is_read_from_the_environment_alone(
    endpoint: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = judge(endpoint, key="MY_KEY")
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(UserError, match="MY_KEY holds no key"):
        own(QUESTION, "right")
    monkeypatch.setenv("MY_KEY", "k-1")
    own(QUESTION, "right")
    assert "k-1" not in own.fingerprint + repr(own)
    with serving() as other:
        endpoint.answer = lambda handler, _: handler.say(
            b"", 302, Location=other.url.replace("127.0.0.1", "localhost")
        )
        with pytest.raises(UserError, match="HTTP 302"):
            own(QUESTION, "right")
        assert other.requests == []
    assert [key for *_, key in endpoint.requests] == ["Bearer k-1"] * 2


@pytest.mark.parametrize(
    ("failures", "asked", "score"),
    [([429, 503], 3, 1.0), ([401], 1, None), ([500] * 3, 3, None)],
    ids=str,
)
def test_a_busy_endpoint_is_retried(
    endpoint: FakeServer, failures: list[int], asked: int, score: float | None
) -> None:
    endpoint.answer = graded_by(failures=failures)
    own = judge(endpoint, retries=2)
    if score is None:
        with pytest.raises(UserError, match=f"does not answer: HTTP {failures[0]}"):
            own(QUESTION, "right")
    else:
        assert own(QUESTION, "right") == score
    assert len(endpoint.requests) == asked


@pytest.mark.parametrize(
    "status", [400, 403, 404, 408, 409, 410, 424, 425, 429, 500, 501, 502, 503, 504, 505]
)
def test_what_may_pass_by_itself_is_asked_again(endpoint: FakeServer, status: int) -> None:
    """Time-outs, conflicts, too many requests and faults of the server or its gateway."""
    endpoint.answer = graded_by(failures=[status])
    passing = status in (408, 409, 425, 429, 500, 502, 503, 504)
    if passing:
        assert judge(endpoint, retries=1)(QUESTION, "right") == 1.0
    else:
        with pytest.raises(UserError, match=f"HTTP {status}"):
            judge(endpoint, retries=1)(QUESTION, "right")
    assert len(endpoint.requests) == 1 + passing


def test_the_fingerprint_is_the_judge_and_its_prompt(endpoint: FakeServer) -> None:
    own = judge(endpoint)
    assert own.fingerprint == judge(endpoint, retries=9, threads=2, timeout=1.0).fingerprint
    changes = {"model": "l", "prompt": "$answer?", "system": "x", "verdict": "x", "url": "http://o"}
    for key, value in changes.items():
        assert judge(endpoint, **{key: value}).fingerprint != own.fingerprint


def test_a_run_judges_equal_answers_once_and_a_second_never(
    endpoint: FakeServer, family: Path, module: Path, souping: Cli, tmp_path: Path
) -> None:
    made = f"helpful = Judge(model='m', url='{endpoint.url}/v1', key='')"
    module.write_text(f"from souping.evaluate.scoring.judge import Judge\n{made}\n")
    base = quick_run(family, tmp_path, "helpful")
    endpoint.answer = graded_by(failures=[500] * 4 + [400])
    souping(*base, "hydra.run.dir=a").refused("judge m at http", "HTTP 400", "in the store")
    assert counted(tmp_path, "* answers") == 6  # none is lost by a judge
    assert souping(*base, "hydra.run.dir=b").code == 0
    asked = len(endpoint.requests)
    graded = [body["messages"][-1]["content"] for _, body, _ in endpoint.requests[5:]]
    assert len(graded) == len(set(graded))
    assert souping(*base, "hydra.run.dir=c").code == 0
    assert len(endpoint.requests) == asked


class TestVerdicts:
    """A judge's verdicts, of replies that are given."""

    @pytest.fixture
    def judge(self, monkeypatch: pytest.MonkeyPatch) -> Callable[..., float]:
        def verdict(reply: str, **settings: Any) -> float:
            monkeypatch.setattr(Judge, "reply", lambda self, body: reply)
            return Judge(model="small", key="", prompt="graded: $answer", **settings)(QUESTION, "x")

        return verdict

    def test_the_last_verdict_counts_in_any_case(self, judge: Callable[..., float]) -> None:
        assert judge("No. On second thoughts: YES.") == 1.0
        assert judge("yes, or no") == 0.0
        with pytest.raises(UserError, match="no verdict"):
            judge("perhaps")

    def test_a_number_counts_over_the_scale(self, judge: Callable[..., float]) -> None:
        grade = r"grade: (\w+)( of 10)?"
        assert judge("grade: 3 of 10, then grade: 7 of 10", verdict=grade, scale=10.0) == 0.7
        assert judge("grade: 0", verdict=grade, scale=10.0) == 0.0
        scores = {"7": 0.25}
        assert judge("grade: 7", verdict=grade, scale=10.0, scores=scores) == 0.25
        with pytest.raises(UserError, match="'good' is neither in scores nor a number"):
            judge("grade: good", verdict=grade)

    def test_a_judge_waits_a_minute_and_tries_six_times_unless_told_otherwise(self) -> None:
        own = Judge(model="small")
        assert (own.timeout, own.retries, own.pause, own.threads) == (60.0, 5, 1.0, 8)
        assert (own.max_tokens, own.scale, own.key) == (512, 1.0, "OPENAI_API_KEY")
        assert own.scores == {"yes": 1.0, "no": 0.0}

    def test_a_reply_without_a_message_is_no_verdict(self, monkeypatch: pytest.MonkeyPatch) -> None:
        replies = [
            {"choices": []},
            {"choices": [{"message": {"content": None}}]},
            {"choices": [{"message": {"content": "yes"}}, {"message": {"content": "no"}}]},
        ]
        waiting = [json.dumps(reply) for reply in replies]
        monkeypatch.setattr("souping.evaluate.scoring.judge.post", lambda *request: waiting.pop(0))
        own = Judge(model="small", key="", retries=1, pause=0.0)
        with pytest.raises(UserError, match="its reply holds no message"):
            own(QUESTION, "x")
        assert own(QUESTION, "x") == 1.0

    def test_pauses_between_tries_double(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pauses = list[float]()

        def busy(*request: object) -> bytes:
            raise ServerError("busy", status=503)

        monkeypatch.setattr("souping.evaluate.scoring.judge.post", busy)
        monkeypatch.setattr("souping.evaluate.scoring.judge.time.sleep", pauses.append)
        with pytest.raises(UserError, match="HTTP 503"):
            Judge(model="small", key="", retries=4, pause=0.5)(QUESTION, "x")
        assert pauses == [0.5, 1.0, 2.0, 4.0]

    def test_a_prompt_without_the_answer_is_refused(self) -> None:
        with pytest.raises(UserError, match="answer"):
            Judge(model="small", prompt="$question")

    def test_a_request_shows_messages_with_their_roles_and_references_as_json(self) -> None:
        messages = (
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "2 + 2?"},
        )
        item = Item(id="1", category="c", prompt=messages, answer=["4", "\u00e4"])
        body = Judge(model="small", prompt="$question|$reference|$answer|$5", max_tokens=7).request(
            item, "four"
        )
        text = 'system: Be kind.\n\nuser: 2 + 2?|["4", "\u00e4"]|four|$5'
        assert body["messages"] == [{"role": "user", "content": text}]
        assert (body["temperature"], body["max_tokens"], body["model"]) == (0, 7, "small")
        strict = Judge(model="small", system="Be strict.", extra={"top_p": 0.5}).request(
            QUESTION, "x"
        )
        assert [message["role"] for message in strict["messages"]] == ["system", "user"]  # type: ignore[union-attr,index,call-overload]
        assert strict["top_p"] == 0.5
