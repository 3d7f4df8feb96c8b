"""Faults planted by cosmic-ray in the code that decides, and which of them the tests notice.

    python benchmarks/mutants.py [--salt TEXT] [--count 200] [--rooms NAME ..] [--workers 2] [--record]
        [--seconds 90] [--again OLD.csv] [--out build/mutants/mutants.csv]

Run it with `nice`. Mutants are those of cosmic-ray's operators in `OPERATORS`, outside annotations and the `*` of
signatures. The sample is the `count` of them with the smallest SHA-256 of `salt:file:operator:occurrence`, at most one
for each place in the code. `--again` takes the survivors of an earlier table instead.

The first call runs the quick tests of `ROOMS` once under coverage, which records the lines that each test executes;
`--record` does so again. A mutant is then run against the tests that execute its statement (the quickest first, until
the first failure), in a copy of the repository. A statement that runs at import is that of all tests in the files whose
tests execute its file. The tests that read the sources execute none, and are run last against every mutant.
Tests that kill a mutant are at the end run without one: one that fails there is an error of this measurement.
"""

from __future__ import annotations

import argparse
import ast
import csv
import hashlib
import io
import itertools
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tokenize
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "build" / "mutants"
"""Coverage and durations of the tests, by folder."""


@dataclass(frozen=True)
class Room:
    """Files in `souping/` that decide, and the tests that are run against their mutants."""

    files: tuple[str, ...]
    tests: tuple[str, ...]


METHOD_TESTS = (
    "tests/selection",
    "tests/search",
    "tests/merge",
    "tests/core",
    "tests/evaluate/scoring",
    "tests/evaluate/test_splits.py",
    "tests/evaluate/test_command.py",
    "tests/logs",
)
ITEM_TESTS = (*METHOD_TESTS, "tests/evaluate/test_questions.py", "tests/test_library.py")
LOG_TESTS = (*METHOD_TESTS, "tests/comparison")
CLAIM_TESTS = (
    "tests/statistics",
    "tests/comparison",
    "tests/runs/test_evidence.py",
    "tests/runs/test_verdict.py",
    "tests/runs/test_goals.py",
    "tests/report/test_content.py",
    "tests/report/test_report.py",
)
COMPARISON_TESTS = (*CLAIM_TESTS, "tests/logs")
ANALYSIS_TESTS = (
    "tests/analysis",
    "tests/answers/test_counted_looks.py",
    "tests/comparison/test_runs.py",
    "tests/runs/test_trajectory.py",
    "tests/runs/test_router.py",
)
STRUCTURE_TESTS = ("tests/test_layers.py",)
"""Tests that read the sources: they are run against every mutant, after those of the room."""
MERGE_FILES = ("merge/alignment.py", "merge/plan.py", "merge/factors.py", "merge/adapters.py")
EVIDENCE_FILES = ("runs/evidence.py", "runs/verdict.py", "runs/goals.py")
LOOK_FILES = (
    "answers/claims.py",
    "answers/counted_looks.py",
    "answers/report_choices.py",
    "runs/held_out.py",
)
ROOMS: Mapping[str, Room] = {
    "selection": Room(("selection.py",), METHOD_TESTS),
    "search": Room(("search/*.py",), METHOD_TESTS),
    "merge": Room(MERGE_FILES, METHOD_TESTS),
    "scores": Room(("core/scores.py", "evaluate/scoring/*.py"), METHOD_TESTS),
    "units": Room(("core/unit.py",), METHOD_TESTS),
    "splits": Room(("evaluate/benchmark.py",), ITEM_TESTS),
    "logs": Room(("logs/*.py",), LOG_TESTS),
    "statistics": Room(("statistics/*.py",), CLAIM_TESTS),
    "comparison": Room(("comparison/*.py",), COMPARISON_TESTS),
    "evidence": Room(EVIDENCE_FILES, (*CLAIM_TESTS, "tests/runs/test_router.py")),
    "analysis": Room(("analysis/*.py",), ANALYSIS_TESTS),
    "looks": Room(LOOK_FILES, ANALYSIS_TESTS),
}
OPERATORS = re.compile(
    r"core/("
    r"ReplaceBinaryOperator_(Add_Sub|Sub_Add|Mul_Div|Div_Mul|FloorDiv_Mul|Mod_Mul|Pow_Mul|BitOr_BitAnd|BitAnd_BitOr)"
    r"|ReplaceComparisonOperator_(Eq_NotEq|NotEq_Eq|Lt_\w+|LtE_\w+|Gt_\w+|GtE_\w+|Is_IsNot|IsNot_Is)(?<!_Is)(?<!_IsNot)"
    r"|ReplaceUnaryOperator_(USub_UAdd|Delete_\w+)|AddNot|ReplaceTrueWithFalse|ReplaceFalseWithTrue"
    r"|ReplaceAndWithOr|ReplaceOrWithAnd|ReplaceBreakWithContinue|ReplaceContinueWithBreak|NumberReplacer"
    r"|ZeroIterationForLoop|RemoveDecorator)|core/ReplaceComparisonOperator_(Is_IsNot|IsNot_Is)"
)
"""Faults that people make. Of the others (a shift for a sum, `is` for `<`), most end in a TypeError at once."""
Span = tuple[tuple[int, int], tuple[int, int]]
"""First place, and the place after the last: (line, column) each."""
PRELOADED = (
    "pytest", "hypothesis", "numpy", "scipy.stats", "scipy.sparse.csgraph", "scipy.optimize", "torch", "transformers",
    "safetensors.torch", "hydra", "llvmlite.binding", "nevergrad",
)  # fmt: skip
"""Packages that are imported once, before a process is forked for each mutant."""
DURATION = re.compile(r"^([\d.]+)s (?:call|setup) +(tests/.*)$", re.MULTILINE)
FAILED = re.compile(r"^(?:FAILED|ERROR) (tests/[^\[\s]+(?:\[.*?\])?)(?: - .*)?$", re.MULTILINE)
SURVIVED = ("survived", "not executed")
"""Outcomes of mutants that no test killed."""
MOST_SECONDS = 90.0
"""Duration of the tests that a mutant is run against, at most (`--seconds`); one longer test is run alone."""
SPARE_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """A fault, and how the tests took it: killed, timeout, survived, or not executed."""

    room: str
    file: str
    line: int
    column: int
    operator: str
    occurrence: int
    before: str = ""
    after: str = ""
    outcome: str = ""
    test: str = ""

    def draw(self, salt: str) -> str:
        text = f"{salt}:{self.file}:{self.operator}:{self.occurrence}"
        return hashlib.sha256(text.encode()).hexdigest()


# The mutants


def mutants_of(room: str, path: Path) -> Iterator[Mutant]:
    """All mutants of a file, as cosmic-ray counts them."""
    from cosmic_ray import plugins
    from cosmic_ray.ast import ast_nodes, get_ast_from_path

    source = path.read_text()
    meaningless = [*annotation_spans(source), *keyword_marks(source)]
    nodes = list(ast_nodes(get_ast_from_path(path)))
    for name in filter(OPERATORS.fullmatch, plugins.operator_names()):
        operator = plugins.get_operator(name)()
        occurrence = -1
        for node in nodes:
            for start, _ in operator.mutation_positions(node):
                occurrence += 1
                if any(first <= start < last for first, last in meaningless):
                    continue
                yield Mutant(
                    room=room,
                    file=str(path.relative_to(ROOT)),
                    line=start[0],
                    column=start[1],
                    operator=name.removeprefix("core/"),
                    occurrence=occurrence,
                )


def annotation_spans(source: str) -> list[Span]:
    """Where annotations begin and end: `|` computes nothing in them."""
    annotations = list[ast.expr | None]()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.arg | ast.AnnAssign):
            annotations.append(node.annotation)
        if isinstance(node, ast.FunctionDef):
            annotations.append(node.returns)
    spans = []
    for annotation in annotations:
        if annotation is not None:
            start = (annotation.lineno, annotation.col_offset)
            end = (annotation.end_lineno or 0, annotation.end_col_offset or 0)
            spans.append((start, end))
    return spans


def keyword_marks(source: str) -> list[Span]:
    """Where a `*` of a signature is, after which arguments have keywords: it multiplies nothing."""
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    pairs = itertools.pairwise(tokens)
    return [
        (star.start, star.end) for star, comma in pairs if (star.string, comma.string) == ("*", ",")
    ]


def drawn(mutants: Sequence[Mutant], salt: str, count: int) -> list[Mutant]:
    """The sample: the first by their hash, one for each place."""
    sample = dict[tuple[str, int, int], Mutant]()
    for mutant in sorted(mutants, key=lambda mutant: mutant.draw(salt)):
        sample.setdefault((mutant.file, mutant.line, mutant.column), mutant)
    return list(sample.values())[:count]


def mutated(mutant: Mutant, source: str) -> str:
    from cosmic_ray import plugins
    from cosmic_ray.mutating import mutate_code

    operator = plugins.get_operator(f"core/{mutant.operator}")()
    return str(mutate_code(source, operator, mutant.occurrence))


def changed_line(before: str, after: str) -> tuple[str, str]:
    """The first lines in which two texts differ."""
    for old, new in zip(before.split("\n"), after.split("\n"), strict=False):
        if old != new:
            return old.strip(), new.strip()
    return "", ""


# The tests of a line


def tests_of(rooms: Collection[str]) -> list[str]:
    """Folders and files of tests, each once."""
    tests = dict.fromkeys(STRUCTURE_TESTS)
    for room in rooms:
        tests |= dict.fromkeys(ROOMS[room].tests)
    return list(tests)


def record(tests: str) -> None:
    """Run tests under coverage, each a context, and keep how long each took. One that fails is not used."""
    RECORDS.mkdir(parents=True, exist_ok=True)
    data = record_of(tests)
    options = [
        "-n",
        "0",
        "--dist",
        "no",
        "-q",
        "--cov=souping",
        "--cov-context=test",
        "--cov-report=",
    ]
    options += ["--durations=0", "--durations-min=0", "-p", "no:cacheprovider"]
    with data.with_suffix(".log").open("w") as log:
        ended = subprocess.run(
            [sys.executable, "-m", "pytest", *options, tests],
            cwd=ROOT,
            env={**os.environ, "COVERAGE_FILE": str(data)},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    if ended.returncode not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise ValueError(f"{tests} could not be recorded: see {log.name}")


def record_of(tests: str) -> Path:
    return RECORDS / f"{tests.replace('/', '_')}.coverage"


def durations(rooms: Collection[str]) -> dict[str, float]:
    """{test: seconds, set-up included}."""
    seconds = defaultdict[str, float](float)
    for tests in tests_of(rooms):
        log = record_of(tests).with_suffix(".log").read_text()
        for number, test in DURATION.findall(log):
            seconds[test] += float(number)
        for test in FAILED.findall(log):
            seconds.pop(test, None)
    return dict(seconds)


@cache
def tests_by_line(file: str, room: str) -> dict[int, set[str]]:
    """{line: tests that execute it}."""
    from coverage import CoverageData

    lines: dict[int, set[str]] = {}
    for tests in ROOMS[room].tests:
        data = CoverageData(basename=str(record_of(tests)))
        data.read()
        for measured in data.measured_files():
            if not measured.endswith(f"/{file}"):
                continue
            for line, contexts in data.contexts_by_lineno(measured).items():
                names = {context.rpartition("|")[0] for context in contexts if context}
                lines.setdefault(line, set()).update(names)
    return lines


def executing_tests(mutant: Mutant, seconds: Mapping[str, float]) -> set[str]:
    """Tests that execute the mutant's statement; of one that runs at import, all in the files of those that use it."""
    by_line = tests_by_line(mutant.file, mutant.room)
    span = statement_span((ROOT / mutant.file).read_text(), mutant.line)
    if span is not None:
        return set().union(*(by_line.get(line, set()) for line in span))
    files = {test.partition("::")[0] for test in set().union(*by_line.values())}
    return {test for test in seconds if test.partition("::")[0] in files}


def statement_span(source: str, line: int) -> range | None:
    """Lines of the innermost statement in a function, without the body of a compound one; None outside functions."""
    span = None
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef):
            continue
        for inner in ast.walk(node):
            if not isinstance(inner, ast.stmt) or inner is node:
                continue
            last = inner.end_lineno or inner.lineno
            if isinstance(inner, ast.If | ast.For | ast.While | ast.With | ast.Try):
                last = max(inner.lineno, inner.body[0].lineno - 1)
            if inner.lineno <= line <= last and (span is None or last - inner.lineno < len(span)):
                span = range(inner.lineno, last + 1)
    return span


def quickest(tests: set[str], seconds: Mapping[str, float], most: float) -> list[str]:
    """The quickest tests, until their durations add up to `most`."""
    known = sorted(tests & set(seconds), key=lambda test: (seconds[test], test))
    chosen = list[str]()
    total = 0.0
    for test in known:
        total += seconds[test]
        if chosen and total > most:
            break
        chosen.append(test)
    return chosen


# A mutant's run


class Copy:
    """A copy of the repository in which one file at a time is wrong."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mutants-"))
        listed = subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT)
        for name in listed.decode().splitlines():
            if (ROOT / name).is_file():
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, self.folder / name)
        self._stamp = time.time()

    def write(self, file: str, text: str) -> None:
        """Each version has a time of its own, so that no byte code of another is taken for it."""
        self._stamp += 10
        (self.folder / file).write_text(text)
        os.utime(self.folder / file, (self._stamp, self._stamp))

    def run(
        self, tests: Sequence[str], seconds: float, all_tests: bool = False
    ) -> tuple[str, list[str]]:
        """(outcome, tests that failed) in a forked process, which has so many seconds of processor time."""
        log = self.folder / "mutant.log"
        child = os.fork()
        if not child:
            self._test(tests, log, int(seconds), all_tests)
        deadline = time.monotonic() + 8 * seconds
        status = 0
        done = 0
        while not done and time.monotonic() < deadline:
            done, status = os.waitpid(child, os.WNOHANG)
            time.sleep(0.05)
        if not done:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "timeout", []
        output = log.read_text(errors="replace")
        if "ERROR: not found: " in output:
            raise ValueError("a test that was recorded is gone: call with --record")
        failed = FAILED.findall(output)
        if os.WIFSIGNALED(status):
            return "timeout", failed
        return ("survived" if os.waitstatus_to_exitcode(status) == 0 else "killed"), failed

    def _test(self, tests: Sequence[str], log: Path, seconds: int, all_tests: bool) -> None:
        """The forked process: it never returns."""
        code = 3
        try:
            os.setsid()
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
            os.chdir(self.folder)
            os.environ["PYTHONPATH"] = str(self.folder)
            sys.path[0] = str(self.folder)
            sys.dont_write_bytecode = False
            options = ["-n", "0", "-q", "-rfE", "--tb=line", "-p", "no:cacheprovider"]
            code = int(pytest.main([*options, *([] if all_tests else ["-x"]), *tests]))
            sys.stdout.flush()
        finally:
            os._exit(code)


@cache
def copy() -> Copy:
    """The copy of this process."""
    return Copy()


def judge(mutant: Mutant, tests: Sequence[str], seconds: float) -> Mutant:
    """The mutant with its outcome."""
    source = (ROOT / mutant.file).read_text()
    text = mutated(mutant, source)
    before, after = changed_line(source, text)
    outcome = "not executed"
    failed = list[str]()
    if tests:
        copy().write(mutant.file, text)
        outcome, failed = copy().run(tests, SPARE_SECONDS + 5 * seconds)
        copy().write(mutant.file, source)
    fields = asdict(mutant) | {"before": before, "after": after, "outcome": outcome}
    return Mutant(**fields | {"test": " ".join(failed[:1])})


def judged(mutants: Sequence[Mutant], workers: int, most: float) -> Iterator[Mutant]:
    """Outcomes in the order of the mutants, each of tests that take `most` seconds."""
    seconds = durations({mutant.room for mutant in mutants})
    structure = sorted(test for test in seconds if test.startswith(STRUCTURE_TESTS))
    for name in PRELOADED:
        import_module(name)
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        outcomes = []
        for mutant in mutants:
            tests = quickest(executing_tests(mutant, seconds), seconds, most) + structure
            total = sum(seconds[test] for test in tests)
            outcomes.append(pool.submit(judge, mutant, tests, total))
        for outcome in outcomes:
            yield outcome.result()
        killers = sorted({mutant.result().test for mutant in outcomes} - {""})
        if killers:
            print(
                len(killers),
                "tests that killed, without a mutant:",
                *pool.submit(sound, killers).result(),
            )


def sound(tests: Sequence[str]) -> tuple[str, list[str]]:
    return copy().run(tests, 600, all_tests=True)


def all_mutants(rooms: Sequence[str]) -> list[Mutant]:
    mutants = list[Mutant]()
    for room in rooms:
        for pattern in ROOMS[room].files:
            for path in sorted((ROOT / "souping").glob(pattern)):
                mutants.extend(mutants_of(room, path))
    return mutants


def survivors(table: Path) -> list[Mutant]:
    """The mutants of an earlier table that no test killed."""
    with table.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["outcome"] in SURVIVED]
    return [
        Mutant(
            room=row["room"],
            file=row["file"],
            line=int(row["line"]),
            column=int(row["column"]),
            operator=row["operator"],
            occurrence=int(row["occurrence"]),
            before=row["before"],
            after=row["after"],
            outcome=row["outcome"],
            test=row["test"],
        )
        for row in rows
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--salt", default="souping")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--rooms", nargs="+", choices=ROOMS, default=list(ROOMS))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--seconds", type=float, default=MOST_SECONDS)
    parser.add_argument("--again", type=Path)
    parser.add_argument("--out", type=Path, default=RECORDS / "mutants.csv")
    options = parser.parse_args()

    for tests in tests_of(options.rooms):
        if options.record or not record_of(tests).exists():
            record(tests)
    if options.again:
        mutants = survivors(options.again)
    else:
        mutants = all_mutants(options.rooms)
        print(len(mutants), "mutants")
        mutants = drawn(mutants, options.salt, options.count)

    outcomes = Counter[str]()
    with options.out.open("w", newline="") as file:
        table = csv.DictWriter(file, list(Mutant.__annotations__))
        table.writeheader()
        for mutant in judged(mutants, options.workers, options.seconds):
            table.writerow(asdict(mutant))
            file.flush()
            outcomes[mutant.outcome] += 1
            print(
                f"{mutant.outcome:12} {mutant.file}:{mutant.line} {mutant.operator} {mutant.test}"
            )
            if mutant.outcome in SURVIVED:
                print(f"    - {mutant.before}\n    + {mutant.after}", flush=True)
    print(*(f"{name} {number}" for name, number in outcomes.items()), sep=", ")


if __name__ == "__main__":
    main()
