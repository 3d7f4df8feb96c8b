"""The page in a headless Chromium: no word on the console, nothing sticks out on a phone, axe-core finds nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from souping.comparison.result import comparison_page
from souping.core.reading import to_json
from souping.report.analysis_results import read_content
from souping.report.run_files import write_report
from tests.support import browser
from tests.support.browser import Browser
from tests.support.compare import answers, compared
from tests.support.measured import measured
from tests.support.report import sample

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        browser.executable() is None, reason="no Chromium on the path, none in SOUPING_BROWSER"
    ),
]
SAMPLES = {"three": (3, 5, 8), "one": (1, 4, 3), "two": (2, 2, 2), "many": (5, 8, 14)}
"""{name: (ingredients, candidates, categories)}"""
OTHERS = ("trajectory", "comparison")
VIEWS = {"light": (1280, "light"), "dark": (1280, "dark"), "phone": (390, "light")}
OPEN = "document.querySelectorAll('details').forEach(part => { part.open = true })"
STICKS_OUT = """[...document.querySelectorAll('main *')].filter(part => !part.closest('.scroll, pre')
    && part.getBoundingClientRect().right > innerWidth + 0.5).map(part => part.outerHTML)"""
CUT = """[...document.querySelectorAll('th, td')].filter(cell => {
    const own = cell.getBoundingClientRect(), box = cell.closest('.scroll').getBoundingClientRect();
    return own.width && (own.left < box.left - 1 || own.right > box.right + 1
        || cell.scrollWidth > cell.clientWidth + 1)}).map(cell => cell.outerHTML)"""
SMALL = """[...document.querySelectorAll('svg text')].filter(text => text.getBoundingClientRect().width)
    .map(text => [text.textContent, parseFloat(getComputedStyle(text).fontSize)
        * Math.hypot(text.getScreenCTM().a, text.getScreenCTM().b)]).filter(text => text[1] < 8.99)"""
AXE = """axe.run({resultTypes: ['violations']}).then(found => found.violations.map(
    one => [one.id, one.nodes[0].html, one.nodes[0].failureSummary]))"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser.browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """{name: page}, of runs of several sizes, a training run and a comparison."""
    made = {}
    for name, (k, models, columns) in SAMPLES.items():
        folder = tmp_path_factory.mktemp(name)
        report, trials = sample(k=k, models=models, columns=columns)
        write_report(read_content(report), trials, folder)
        made[name] = folder / "report.html"
    report = {**sample()[0], "trajectory": to_json(measured(rates=True))}
    folder = tmp_path_factory.mktemp("others")
    write_report(read_content(report), [], folder)
    made["trajectory"] = folder / "report.html"
    result = compared(*(answers(0.4 + 0.1 * n, n) for n in range(3)), margin=3.0)
    made["comparison"] = folder / "comparison.html"
    made["comparison"].write_text(comparison_page(result))
    return made


@pytest.mark.parametrize("name", [*SAMPLES, *OTHERS])
@pytest.mark.parametrize("view", VIEWS)
def test_nothing_sticks_out_and_no_message(
    name: str, view: str, chromium: Browser, pages: dict[str, Path]
) -> None:
    width, scheme = VIEWS[view]
    chromium.open(pages[name], width, scheme)
    for _ in range(2):
        assert chromium.evaluate("document.documentElement.scrollWidth") <= width
        assert chromium.evaluate(STICKS_OUT) == []
        chromium.evaluate(OPEN)
    assert chromium.messages == []


@pytest.mark.parametrize("name", [*SAMPLES, *OTHERS])
@pytest.mark.parametrize("width", [360, 400])
def test_a_phone_cuts_no_cell_and_shrinks_no_label_below_9_pixels(
    name: str, width: int, chromium: Browser, pages: dict[str, Path]
) -> None:
    chromium.open(pages[name], width)
    chromium.evaluate(OPEN)
    assert chromium.evaluate(CUT) == []
    assert chromium.evaluate(SMALL) == []


def test_the_first_charts_fit_a_phone(chromium: Browser, pages: dict[str, Path]) -> None:
    chromium.open(pages["three"], *VIEWS["phone"])
    boxes = "[...document.querySelectorAll('figure .scroll')].slice(0, 2)"
    hidden = f"{boxes}.map(box => box.scrollWidth - box.clientWidth)"
    assert chromium.evaluate(hidden) == [0, 0]


@pytest.mark.skipif(
    browser.axe() is None, reason="no axe-core: npm install axe-core, or its file in SOUPING_AXE"
)
@pytest.mark.parametrize("name", [*SAMPLES, *OTHERS])
@pytest.mark.parametrize("view", VIEWS)
def test_axe_finds_nothing(name: str, view: str, chromium: Browser, pages: dict[str, Path]) -> None:
    chromium.open(pages[name], *VIEWS[view])
    chromium.evaluate(f"{browser.axe().read_text()};0")  # type: ignore[union-attr]
    for _ in range(2):
        assert chromium.evaluate(AXE) == []
        chromium.evaluate(OPEN)


def test_names_and_prompts_in_the_page_run_no_code(
    chromium: Browser, pages: dict[str, Path], tmp_path: Path
) -> None:
    page = tmp_path / "changed.html"
    added = "<script>document.title = 'ran'</script><img src='https://localhost/x.png' onerror='document.title = 1'>"
    page.write_text(pages["three"].read_text().replace("</main>", f"{added}</main>"))
    chromium.open(page)
    assert chromium.evaluate("document.title").startswith("souping")
    assert any("Content Security Policy" in message for message in chromium.messages)


def test_print_leaves_out_what_is_folded_and_shows_what_was_opened(
    chromium: Browser, pages: dict[str, Path]
) -> None:
    shown = "[...document.querySelectorAll('details table')].filter(t => t.offsetHeight > 0).length"
    chromium.open(pages["three"], width=720, media="print")
    assert chromium.evaluate(shown) == 0
    assert chromium.evaluate("document.querySelector('nav').offsetHeight") == 0
    chromium.evaluate(OPEN)
    assert chromium.evaluate(shown) > 5
    assert chromium.evaluate("document.documentElement.scrollWidth") <= 720


def test_the_checks_find_faults_that_were_planted(chromium: Browser, tmp_path: Path) -> None:
    """The checks above can fail."""
    page = tmp_path / "bad.html"
    page.write_text(
        "<main><p style='width:2000px'>wide</p><img src='none.png'><script>console.log(1); nothing()</script>"
        "<svg viewBox='0 0 800 20' style='width:400px'><text y='9' font-size='12'>small</text></svg>"
        "<div class='scroll' style='overflow:auto'><table><td style='min-width:500px'>0.3</table></div>"
    )
    chromium.open(page, 390)
    assert chromium.evaluate("document.documentElement.scrollWidth") > 390
    assert chromium.evaluate(STICKS_OUT) != []
    assert len(chromium.evaluate(CUT)) == 1
    assert chromium.evaluate(SMALL) == [["small", 6]]
    assert any("nothing is not defined" in json.loads(message).get("exceptionDetails", {}).get("exception", {}).get(
        "description", "") for message in chromium.messages)  # fmt: skip
    if script := browser.axe():
        chromium.evaluate(f"{script.read_text()};0")
        assert {one[0] for one in chromium.evaluate(AXE)} >= {"image-alt", "html-has-lang"}
