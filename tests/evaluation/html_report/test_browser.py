"""Report page in a real browser: sorting, hovering, enlarging; widths, dark mode, no script, no network.

Needs playwright (a development package) and an installed Chromium: `apt-get install chromium` on Debian.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pspnet.evaluation.html_report.page import write_report
from pspnet.evaluation.html_report.report_request import ReportRequest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    pytest.skip("no Chromium on this machine, so the report was NOT tried in a browser", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is missing: the report was NOT tried")

_ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
Make = Callable[..., Path]
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=_ARGUMENTS, timeout=120_000)
        yield found
        found.close()


@pytest.fixture
def open_report(browser: Any, tmp_path: Path) -> Iterator[Open]:
    """Write a report of folders and open it; page errors and network requests fail the test."""
    contexts, complaints = [], []

    def open_page(*folders: Path, width: int = 1280, **context: Any) -> Any:
        write_report(ReportRequest(folders=folders, output=tmp_path / "report.html"))
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, offline=True, **context))
        page = contexts[-1].new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
        page.on(
            "request",
            lambda request: None if request.url.startswith(("file:", "data:")) else complaints.append(request.url),
        )
        page.goto((tmp_path / "report.html").as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def column(page: Any, selector: str, index: int) -> list[str]:
    return [row.locator("td, th").nth(index).inner_text().strip() for row in page.locator(f"{selector} tbody tr").all()]


def numbers(texts: list[str]) -> list[float]:
    return [float(text) for text in texts]


def test_tables_are_sorted_by_clicks(open_report: Open, make_evaluation: Make) -> None:
    page = open_report(make_evaluation())
    iou = page.locator("table.classes th", has_text="IoU").first
    before = numbers(column(page, "table.classes", 2))
    iou.locator("button").click()
    assert iou.get_attribute("aria-sort") == "descending"
    assert numbers(column(page, "table.classes", 2)) == sorted(before, reverse=True)
    iou.locator("button").click()
    assert iou.get_attribute("aria-sort") == "ascending"
    assert numbers(column(page, "table.classes", 2)) == sorted(before)
    name = page.locator("table.classes th", has_text="Class").first
    name.locator("button").focus()
    page.keyboard.press("Enter")
    names = column(page, "table.classes", 1)
    assert sorted(names) == sorted(["class 0", "<script>alert(1)</script>", '"><img src=x>', "class 3", "class 4"])
    assert names[-2:] == ["class 3", "class 4"]
    assert page.locator("[aria-sort]").count() == 1
    pixels = numbers([text.replace(",", "") for text in column(page, "table.largest", 2)])
    page.locator("table.largest th button", has_text="Pixels").click()
    page.locator("table.largest th button", has_text="Pixels").click()
    assert numbers([text.replace(",", "") for text in column(page, "table.largest", 2)]) == sorted(pixels)


def test_the_pointer_shows_values_of_a_small_matrix(open_report: Open, make_evaluation: Make) -> None:
    page = open_report(make_evaluation())
    cell = page.locator("table.confusion tbody tr").nth(1).locator("td").nth(2)
    cell.hover()
    text = page.locator("#readout-1").inner_text()
    assert text == cell.get_attribute("title")
    assert text.startswith('<script>alert(1)</script> predicted as "><img src=x>: ')


def test_pointer_and_keys_show_values_of_a_large_matrix(open_report: Open, make_evaluation: Make) -> None:
    page = open_report(make_evaluation(classes=150, images=4))
    image, readout = page.locator(".plate image"), page.locator("#readout-1")
    image.scroll_into_view_if_needed()
    box = image.bounding_box()
    cell = box["width"] / 150
    assert cell > 4
    image.hover(position={"x": 21.5 * cell, "y": 20.5 * cell})
    assert readout.inner_text().startswith("class 20 predicted as class 21: ")
    pixels = int(readout.inner_text().split(": ")[1].split(" px")[0].replace(",", ""))
    listed = dict(
        zip(zip(column(page, "table.largest", 0), column(page, "table.largest", 1)), column(page, "table.largest", 2))
    )
    pair = next(iter(listed))
    page.locator(".plate").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    assert readout.inner_text().startswith("class 21 predicted as class 22: ")
    target, predicted = (int(name.split()[1]) for name in pair)
    image.hover(position={"x": (predicted + 0.5) * cell, "y": (target + 0.5) * cell})
    assert f"{listed[pair]} px" in readout.inner_text()
    assert pixels >= 0


def test_a_click_enlarges_a_picture_and_another_restores_it(open_report: Open, make_evaluation: Make) -> None:
    page = open_report(make_evaluation())
    sample = page.locator(".sample").first
    panes = sample.locator(".pane")
    assert [pane.is_visible() for pane in panes.all()] == [True] * 4
    width = panes.nth(2).bounding_box()["width"]
    panes.nth(2).click()
    assert [pane.is_visible() for pane in panes.all()] == [False, False, True, False]
    assert panes.nth(2).bounding_box()["width"] > 2 * width
    panes.nth(2).press("Enter")
    assert [pane.is_visible() for pane in panes.all()] == [True] * 4
    sample.get_by_label("errors").check()
    assert [pane.is_visible() for pane in panes.all()] == [False, False, False, True]
    loaded = page.evaluate("Array.from(document.images, (image) => image.complete && image.naturalWidth)")
    assert loaded == [56] * 32


@pytest.mark.parametrize("width", [390, 820, 1280])
def test_nothing_overflows_the_window(open_report: Open, make_evaluation: Make, make_run: Make, width: int) -> None:
    make_run()
    page = open_report(make_evaluation(protocols=("whole", "slide")), width=width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    if width == 1280:  # on a desktop no table needs scrolling
        boxes = page.evaluate(
            "Array.from(document.querySelectorAll('.scroll'), (box) => box.scrollWidth - box.clientWidth)"
        )
        assert max(boxes) <= 0


def test_comparisons_open_and_sort_by_difference(open_report: Open, make_evaluation: Make) -> None:
    page = open_report(make_evaluation(name="first"), make_evaluation(name="second", seed=2))
    assert not page.locator("#classes-2").is_visible()
    page.locator("#run-2 > summary").click()
    assert page.locator("#classes-2").is_visible()
    page.locator("table.differences th button", has_text="difference").click()
    values = [
        float(cell.get_attribute("data-value")) for cell in page.locator("table.differences td[data-value]").all()
    ]
    assert values == sorted(values, reverse=True)
    assert len(set(values)) == 5


def test_the_page_is_complete_without_script(open_report: Open, make_evaluation: Make) -> None:
    page = open_report(make_evaluation(), java_script_enabled=False)
    assert page.locator("table.classes tbody tr").count() == 5
    assert page.locator("th button").count() == 0
    sample = page.locator(".sample").first
    sample.get_by_label("ground truth").check()
    assert [pane.is_visible() for pane in sample.locator(".pane").all()] == [False, True, False, False]


def test_dark_and_light_mode(open_report: Open, make_evaluation: Make) -> None:
    folder = make_evaluation()
    colours = [
        open_report(folder, color_scheme=scheme).evaluate("getComputedStyle(document.body).backgroundColor")
        for scheme in ("light", "dark")
    ]
    assert colours == ["rgb(245, 246, 248)", "rgb(18, 21, 26)"]


def test_printing(open_report: Open, make_evaluation: Make) -> None:
    page = open_report(make_evaluation(), color_scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    assert not page.locator("nav").is_visible()
    assert page.pdf().startswith(b"%PDF")
