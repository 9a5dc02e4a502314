"""report.html and the comparison page in a real browser: width, keyboard, lazy pictures, nothing fetched."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from browser import Page, open_browser
from synthetic_run import make_run

from personalar.reports.comparison_page import compare_folders
from personalar.reports.run_page import write_report

TAB, ENTER, ESCAPE = 9, 13, 27
WIDTHS = {"desktop": 1280, "phone": 375}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pages")
    make_run(root / "one", seeds=(0, 1))
    make_run(root / "two", seeds=(0, 1))
    compare_folders([root], root)
    return {"report": write_report(root / "one"), "comparison": root / "comparison.html"}


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with open_browser() as opened:
        yield opened


@pytest.fixture(params=["report", "comparison"])
def path(request, pages: dict[str, Path]) -> Path:
    return pages[request.param]


@pytest.mark.parametrize("device", WIDTHS)
def test_nothing_is_wider_than_the_screen(page: Page, path: Path, device: str) -> None:
    page.open(path, width=WIDTHS[device])
    assert page.evaluate("document.documentElement.scrollWidth") <= WIDTHS[device]
    assert page.evaluate("Math.min(...[...document.querySelectorAll('.cell img')].map(i => i.width))") >= 40
    sizes = (
        "[...document.querySelectorAll('p, td, th, li')].map(e => parseFloat(getComputedStyle(e).fontSize))"
    )
    assert page.evaluate(f"Math.min(...{sizes})") >= 10


@pytest.mark.parametrize("device", WIDTHS)
def test_every_column_of_the_scores_is_in_sight(page: Page, path: Path, device: str) -> None:
    page.open(path, width=WIDTHS[device])
    cells = (
        "[...document.querySelectorAll('.scores td, .scores th')].map(e => e.getBoundingClientRect().right)"
    )
    assert 0 < page.evaluate(f"Math.max(...{cells})") <= WIDTHS[device]
    assert page.evaluate(
        "[...document.querySelectorAll('.scroll')].every(e => e.scrollWidth <= e.clientWidth)"
    )


def test_one_file_and_no_request(page: Page, path: Path) -> None:
    page.open(path, width=1280)
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    fetched = page.evaluate(
        "performance.getEntriesByType('resource').map(e => e.name).filter(n => !n.startsWith('data:'))"
    )
    assert fetched == []
    assert page.evaluate("[...document.images].filter(i => i.src).every(i => i.loading === 'lazy' && i.alt)")


def test_pictures_load_when_they_come_into_view(page: Page, path: Path) -> None:
    page.open(path, width=375)
    waiting = page.evaluate(
        """(async () => {
          const wait = ms => new Promise(r => setTimeout(r, ms));
          const all = [...document.querySelectorAll('.board img')];
          const shown = all.filter(i => !i.closest('details:not([open])'));
          for (const image of shown) {
            image.scrollIntoView({behavior: 'instant', inline: 'center'});
            for (let turn = 0; turn < 200 && !image.complete; turn++) await wait(10);
          }
          return [shown.length, shown.filter(i => !i.naturalWidth).length];
        })()"""
    )
    assert waiting[0] > 0 and waiting[1] == 0


def test_a_picture_is_enlarged_and_closed_by_keyboard(page: Page, path: Path) -> None:
    page.open(path, width=1280)
    for _ in range(30):
        page.press("Tab", TAB)
        if page.evaluate("document.activeElement.classList.contains('zoom')"):
            break
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("Enlarge")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"  # who uses the keyboard sees where they are
    page.press("Enter", ENTER)
    assert page.evaluate("document.querySelector('dialog').open")
    assert page.evaluate("document.querySelector('dialog img').naturalWidth") > 0
    page.press("Escape", ESCAPE)
    assert not page.evaluate("document.querySelector('dialog').open")
    assert page.evaluate("document.activeElement.classList.contains('zoom')")  # and goes on from there


def test_every_control_can_be_reached_and_has_a_name(page: Page, path: Path) -> None:
    page.open(path, width=1280)
    controls = "[...document.querySelectorAll('button, summary, a, [tabindex]')]"
    assert page.evaluate(f"{controls}.every(e => e.tabIndex >= 0)")
    assert page.evaluate(f"{controls}.every(e => (e.getAttribute('aria-label') || e.textContent).trim())")
    headings = page.evaluate("[...document.querySelectorAll('h1, h2, h3')].map(h => +h.tagName[1])")
    assert headings[0] == 1 and headings.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(headings))


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_stands_out(page: Page, path: Path, dark: bool) -> None:
    page.open(path, width=1280, dark=dark)
    ratio = page.evaluate(
        """(() => { const lum = c => { const v = c.match(/[\\d.]+/g).slice(0, 3).map(x => (x /= 255) <= .03928
        ? x / 12.92 : ((x + .055) / 1.055) ** 2.4); return .2126 * v[0] + .7152 * v[1] + .0722 * v[2]; };
        const style = getComputedStyle(document.body), a = lum(style.color), b = lum(style.backgroundColor);
        return (Math.max(a, b) + .05) / (Math.min(a, b) + .05); })()"""
    )
    assert ratio >= 7
