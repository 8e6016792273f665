"""The pages in a real browser: nothing is loaded, nothing complains, nothing is wider than the screen."""

import re
from collections.abc import Callable
from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest
from tests.report import samples
from tests.report.conftest import Browser

from retcon.report import bench, forgetting, html
from retcon.report.plots import COLOURS

PAGES: dict[str, Callable[[], str]] = {
    "edits": lambda: html(replace(samples.edits(), details=samples.DETAILS), samples.patch()),
    "forgetting": lambda: forgetting.html(samples.forgetting(), samples.memory()),
    "bench": lambda: bench.html(samples.rows(), provenance={"command": "retcon bench run.toml", "seeds": [0, 1]}),
}

OPENED = "for (const one of document.querySelectorAll('details')) one.open = true"
WIDEST = """[...document.querySelectorAll('body *')]
  .filter(one => !one.closest('.wide') && one.getBoundingClientRect().right > {width} + 1)
  .map(one => one.outerHTML.slice(0, 80))"""


@pytest.mark.parametrize("kind", PAGES)
def test_a_page_loads_nothing_and_fits_a_phone_and_a_desk(browser: Browser, kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"{kind}.html"
    path.write_text(PAGES[kind](), encoding="utf-8")
    for width in (390, 1280):
        events = browser.open(path, width)
        sent = [event["params"]["request"] for event in events if event["method"] == "Network.requestWillBeSent"]
        assert [request["url"] for request in sent] == [path.as_uri()]
        said = [event for event in events if event["method"] in ("Log.entryAdded", "Runtime.consoleAPICalled")]
        assert said == []
        assert browser.tell("window.innerWidth") == width
        browser.tell(OPENED)
        assert browser.tell(WIDEST.replace("{width}", str(width))) == []
        assert browser.tell("document.documentElement.scrollWidth") <= width
        assert browser.tell("document.querySelectorAll('svg').length") > 0


def test_pages_have_two_sets_of_colours(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(PAGES["edits"](), encoding="utf-8")
    colours = []
    for dark in (False, True):
        browser.open(path, 800, dark=dark)
        colours.append(browser.tell("getComputedStyle(document.body).backgroundColor"))
    assert colours == ["rgb(255, 255, 255)", "rgb(17, 20, 24)"]


def contrast(first: str, second: str) -> float:
    """WCAG's ratio of two colours written as #rrggbb or #rgb."""

    def luminance(colour: str) -> float:
        digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
        parts = [int(digits[n : n + 2], 16) / 255 for n in (0, 2, 4)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("which", [0, 1])
def test_text_stands_out_from_what_is_behind_it(which: int) -> None:
    style = resources.files("retcon").joinpath("data", "report_style.css.jinja").read_text(encoding="utf-8")
    block = re.split("@media screen and .prefers-color-scheme: dark.|@media print", style)[which]
    colours = dict(re.findall(r"--([a-z0-9]+): (#[0-9a-f]{3,6})", block))
    pairs = [(text, back) for text in ("ink", "soft", "good", "bad", "accent") for back in ("page", "card")]
    pairs += [("ink", "went"), ("ink", "came"), ("ink", "warn"), ("bad", "went"), ("good", "came")]
    assert {pair: ratio for pair in pairs if (ratio := contrast(colours[pair[0]], colours[pair[1]])) < 4.5} == {}
    lines = [f"c{n}" for n in range(COLOURS)]
    assert {line: ratio for line in lines if (ratio := contrast(colours[line], colours["card"])) < 4.5} == {}


def test_a_folded_part_is_on_paper_too(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(PAGES["edits"](), encoding="utf-8")
    browser.open(path, 800)
    browser.call("Emulation.setEmulatedMedia", media="print")
    height = "document.querySelector('#provenance td').getBoundingClientRect().height"
    assert browser.tell(height) > 0
    browser.call("Emulation.setEmulatedMedia", media="")
