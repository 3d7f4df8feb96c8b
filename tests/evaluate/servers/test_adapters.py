"""Soups of adapters in a vLLM server that somebody else runs: loaded, evaluated by name, and not left there."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from souping.core.protocols import AdapterShape
from souping.core.types import UserError
from souping.evaluate.servers.adapters import is_abandoned
from souping.evaluate.servers.choices import RunningServer, VllmServer
from souping.evaluate.servers.server_process import post
from tests.conftest import ROOT, Cli
from tests.support.adapters import save_adapter
from tests.support.evaluators import bfcl_place, bfcl_runner
from tests.support.http import Answer, Handler, LoraServer, body, endless, raw, serving
from tests.support.processes import wait_for

Q0 = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def server(family: Path) -> Iterator[LoraServer]:
    with serving() as fake:
        routes = LoraServer(fake, family / "base")
        fake.answer = routes.answer
        yield routes


@pytest.fixture
def shape(family: Path) -> AdapterShape:
    return AdapterShape(base=family / "base", rank=5, modules=("q_proj",))


@pytest.fixture
def folder(family: Path, tmp_path: Path) -> Path:
    return save_adapter(tmp_path / "adapter", family / "base", {Q0: 2}, seed=0)


def asked(
    environment: object,
    root: Path,
    handler: str,
    ids: Mapping[str, Sequence[str]],
    generate: Mapping[str, Any],
) -> None:
    """Stands where bfcl-eval would run: one request to the server for every item."""
    for _ in [name for names in ids.values() for name in names]:
        post(f"{generate['url']}/completions", {"model": generate["model"], "prompt": "p"})
    bfcl_runner(environment, root, handler, ids, generate)  # type: ignore[arg-type]


@pytest.fixture
def words(
    server: LoraServer, family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """The words of a run on soups of two adapters in the server."""
    monkeypatch.setattr("souping.evaluate.bfcl.run_bfcl_eval", asked)
    for seed, name in enumerate(("ant", "bee")):
        save_adapter(tmp_path / name, family / "base", {Q0: 2 + seed}, seed)
    python = bfcl_place(tmp_path / "bfcl", count=24, apart=True) / "bin" / "python"
    evaluator = [f"evaluator.python={python}", "evaluator.categories=[simple_python]"]
    return [
        *("evaluator=bfcl", "server=vllm", f"server.url={server.url}", *evaluator),
        *("evaluator.handler=plain", f"pool.candidates=[{tmp_path}/ant,{tmp_path}/bee]"),
        *("selector=all", "analysis=[]", "optimiser=fixed", "optimiser.weights=[0.5,0.5]"),
    ]


def test_a_run_evaluates_soups_by_name_and_leaves_none(
    server: LoraServer, words: list[str], souping: Cli, tmp_path: Path
) -> None:
    server.adapters["of-others"] = "/somewhere"
    souping(*words, "hydra.run.dir=run").ok()
    assert server.adapters == {"of-others": "/somewhere"}
    names = [name for name, _ in server.loaded]
    assert len(names) == len(set(names)) >= 3  # two candidates and a soup, for each split
    assert set(server.answered) == set(names)
    assert all({"config.json", "tokenizer.json"} <= files for _, files in server.loaded)
    report = (tmp_path / "run" / "report.json").read_text()
    assert not [name for name in names if name in report]
    souping(*words).ok()  # names are no part of the fingerprint: all answers are in the store
    assert len(server.loaded) == len(names)


@pytest.mark.parametrize(
    ("problem", "code"), [(UserError("no"), 2), (KeyboardInterrupt(), 130)], ids=["error", "Ctrl-C"]
)
def test_a_run_that_stops_in_the_middle_leaves_none(
    server: LoraServer,
    words: list[str],
    souping: Cli,
    monkeypatch: pytest.MonkeyPatch,
    problem: BaseException,
    code: int,
) -> None:
    def stopping(*arguments: Any) -> None:
        assert len(server.adapters) == 1
        if len(server.loaded) == 2:
            raise problem
        asked(*arguments)

    monkeypatch.setattr("souping.evaluate.bfcl.run_bfcl_eval", stopping)
    assert souping(*words).code == code
    assert (len(server.loaded), server.adapters) == (2, {})


def test_an_interrupted_load_leaves_none(
    server: LoraServer, folder: Path, shape: AdapterShape, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(url: str, body: Any = None, timeout: float = 10.0) -> str:
        text = post(url, body, timeout)
        if url.endswith("/load_lora_adapter"):
            raise KeyboardInterrupt
        return text

    monkeypatch.setattr("souping.evaluate.servers.adapters.post", interrupted)
    with pytest.raises(KeyboardInterrupt):
        VllmServer(url=server.url).start(folder, "m", shape)
    assert (len(server.loaded), server.adapters) == (1, {})


OTHER_RUN = """
import sys, time
from pathlib import Path
from souping.core.protocols import AdapterShape
from souping.evaluate.servers.choices import VllmServer
url, folder, base = sys.argv[1:]
shape = AdapterShape(base=Path(base), rank=5, modules=("q_proj",))
running = VllmServer(url=url).start(Path(folder), "m", shape)
Path("name").write_text(running.model + "\\n")
time.sleep(600)
"""


def test_what_a_killed_run_left_is_removed_by_the_next_and_what_a_live_one_uses_is_not(
    server: LoraServer, folder: Path, shape: AdapterShape, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", OTHER_RUN, server.url, str(folder), str(shape.base)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    other = subprocess.Popen(command, cwd=tmp_path, env=environment)
    try:
        name = wait_for(tmp_path / "name").strip()
        first = VllmServer(url=server.url).start(folder, "m", shape)
        # Two runs at once on one server, also with the same soup.
        assert set(server.adapters) == {name, first.model}
        first.stop()
        assert set(server.adapters) == {name}
    finally:
        other.send_signal(signal.SIGKILL)
        # Until this process has waited for it, its number is taken.
        os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
    second = VllmServer(url=server.url).start(folder, "m", shape)
    assert set(server.adapters) == {second.model}
    other.wait()
    second.stop()
    assert server.adapters == {}


def test_only_names_of_this_machine_s_ended_processes_are_abandoned(
    server: LoraServer, folder: Path, shape: AdapterShape
) -> None:
    own = VllmServer(url=server.url).start(folder, "m", shape).model
    machine, pid, start, number = own.rsplit("-", 3)
    assert socket.gethostname() in machine
    assert int(pid) == os.getpid()
    assert not is_abandoned(own)
    # The number of its process has gone to another one.
    assert is_abandoned(f"{machine}-{pid}-{int(start) - 1}-{number}")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert is_abandoned(f"{machine}-{ended.pid}-{start}-0")
    elsewhere = machine[:-8] + "0" * 8  # a container of this name, or a machine
    for name in (
        f"{elsewhere}-{ended.pid}-{start}-0",
        f"souping-{ended.pid}-{start}-0",
        f"{machine}-{'9' * 40}-{start}-0",
        f"{machine}-{ended.pid}-{start}-0-x",
        "souping",
        "",
    ):
        assert not is_abandoned(name), name


def refusal(server: LoraServer, folder: Path, shape: AdapterShape, timeout: float = 60.0) -> str:
    """The line that refuses the adapter; the server has none then."""
    with pytest.raises(UserError) as caught:
        VllmServer(url=server.url, timeout=timeout).start(folder, "m", shape)
    assert server.adapters == {}
    text = str(caught.value)
    assert text.isprintable()
    assert f"server.url={server.url}" in text
    return text


def test_a_server_that_takes_none_is_told_how_to_start(
    server: LoraServer, folder: Path, shape: AdapterShape
) -> None:
    start = f"VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve {shape.base} --enable-lora --max-lora-rank 8"
    server.allowed = False
    assert start in refusal(server, folder, shape)
    server.allowed = True
    server.max_rank = 1
    text = refusal(server, folder, shape)
    assert "LoRA rank 2 is greater than max_lora_rank 1" in text
    assert start in text
    server.base = "/models/another"
    text = refusal(server, folder, shape)
    assert "it serves /models/another" in text
    assert start in text


def test_a_folder_that_the_server_does_not_see_is_told(
    server: LoraServer, folder: Path, shape: AdapterShape, tmp_path: Path
) -> None:
    server.sees = tmp_path / "elsewhere"
    text = refusal(server, folder, shape)
    assert "TMPDIR" in text
    assert "VLLM_ALLOW" not in text


def test_soups_for_a_server_of_others_are_below_tmpdir(
    server: LoraServer,
    words: list[str],
    souping: Cli,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Shared memory is a machine's or a container's own."""
    shared = tmp_path / "shared"
    shared.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(shared))
    server.sees = shared
    souping(*words).ok()
    assert list(shared.glob("souping-soup-*")) == []


def test_a_base_from_the_hub_may_be_served_by_its_name(
    server: LoraServer, folder: Path, family: Path, tmp_path: Path
) -> None:
    base = tmp_path / "models--org--name" / "snapshots" / ("0" * 40)
    base.parent.mkdir(parents=True)
    base.mkdir()
    shape = AdapterShape(base=base, rank=2, modules=("q_proj",))
    server.base = "org/name"
    VllmServer(url=server.url).start(folder, "m", shape).stop()
    server.base = "org/other"
    assert "it serves org/other" in refusal(server, folder, shape)


def elsewhere(handler: Handler, _: Any) -> None:
    handler.say(b"", 307, Location="http://127.0.0.1:9/elsewhere")


def cut(handler: Handler, _: Any) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"data": [')


HOSTILE: dict[str, Answer] = {
    "an error page": body(b"<html>\n<h1>502</h1>\x1b[2J\n</html>", 502),
    "a redirect": elsewhere,
    "an endless body": endless,
    "a cut connection": cut,
    "no HTTP": raw(b"garbage\r\n\r\n"),
}
NO_LIST: dict[str, Answer] = {
    "no JSON": body(b"Success"),
    "a page": body(b"<html></html>"),
    "a list": body(b"[]"),
    "deep": body(b"[" * 100_000),
    "names of another kind": body(b'{"data": [{"id": 7}, "id", {"id": null}]}'),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_answer_to_a_load_is_a_line(
    server: LoraServer, folder: Path, shape: AdapterShape, name: str
) -> None:
    server.changes["/load_lora_adapter"] = HOSTILE[name]
    assert "cannot take the soup as an adapter" in refusal(server, folder, shape)


@pytest.mark.parametrize("name", [*HOSTILE, *NO_LIST])
def test_a_hostile_list_of_models_is_a_line(
    server: LoraServer, folder: Path, shape: AdapterShape, name: str
) -> None:
    hostile = {**HOSTILE, **NO_LIST}[name]
    server.changes["/models"] = hostile
    refusal(server, folder, shape)

    # Also once it has the adapter, which it then loses again.
    def then(handler: Handler, sent: Any) -> None:
        if server.loaded:
            return hostile(handler, sent)  # type: ignore[return-value]
        del server.changes["/models"]
        server.answer(handler, sent)
        server.changes["/models"] = then
        return None

    server.changes["/models"] = then
    refusal(server, folder, shape)
    assert len(server.loaded) == 1


def test_a_success_that_loaded_nothing_is_a_line(
    server: LoraServer, folder: Path, shape: AdapterShape
) -> None:
    server.changes["/load_lora_adapter"] = body(b"Success: LoRA adapter added successfully.")
    assert "does not list the adapter" in refusal(server, folder, shape)


def test_a_server_that_does_not_unload_is_a_warning(
    server: LoraServer, folder: Path, shape: AdapterShape, caplog: pytest.LogCaptureFixture
) -> None:
    running: RunningServer = VllmServer(url=server.url).start(folder, "m", shape)
    server.changes["/unload_lora_adapter"] = HOSTILE["an error page"]
    running.stop()
    (record,) = caplog.records
    assert running.model in record.getMessage()
    del server.changes["/unload_lora_adapter"]
    caplog.clear()
    running.stop()
    running.stop()  # somebody else may have unloaded it
    assert caplog.records == []


@pytest.mark.parametrize("name", ["an error page", "a list"])
def test_a_hostile_server_stops_a_run_in_a_line(
    server: LoraServer, words: list[str], souping: Cli, name: str
) -> None:
    path = "/models" if name in NO_LIST else "/load_lora_adapter"
    server.changes[path] = {**HOSTILE, **NO_LIST}[name]
    outcome = souping(*words)
    outcome.refused("server.url")
    assert json.dumps(outcome.err).count("\\n") <= 2


@pytest.mark.parametrize(
    "change",
    [
        ["server=transformers"],
        ["server.url=null"],
        ["evaluator=command", 'evaluator.command="true {model} {items} {out}"'],
    ],
    ids=lambda change: change[0],
)
def test_what_takes_no_adapters_says_so_before_the_run(
    server: LoraServer, words: list[str], souping: Cli, family: Path, change: list[str]
) -> None:
    if change[0] == "evaluator=command":
        kept = [word for word in words if not word.startswith(("evaluator", "server"))]
        words = [*kept, f"benchmark.path={family / 'items.jsonl'}"]
    outcome = souping("check", *words, *change)
    assert outcome.code == 2
    assert "merge.adapters=merge" in outcome.err + outcome.out
    assert server.loaded == []
