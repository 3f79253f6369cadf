"""Parsed report page: complete, self-contained, escaped, with the values of the evaluation."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pspnet.errors import DataError
from pspnet.evaluation.html_report.page import percent, signed, write_report
from pspnet.evaluation.html_report.report_request import ReportRequest
from pspnet.evaluation.metrics import Scores
from pspnet.evaluation.per_image import read_records

Make = Callable[..., Path]
_VOID = {"meta", "link", "img", "br", "input"}
_FETCHING = {"src", "href", "action", "data", "srcset", "poster"}


class Page(HTMLParser):
    """Parser that checks that every element is closed, and collects tags, texts and ids."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text = path.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.ids: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self.feed(self.text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.ids += [value for key, value in attrs if key == "id" and value]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif data.strip() and self.open and self.open[-1] != "style":
            self.texts.append(data.strip())

    def count(self, tag: str, **attributes: str) -> int:
        return sum(
            name == tag and all(found.get(key) == value for key, value in attributes.items())
            for name, found in self.elements
        )


def report(output: Path, *folders: Path, **options: object) -> Page:
    write_report(ReportRequest(folders=folders, output=output / "report.html", **options))
    return Page(output / "report.html")


@pytest.fixture
def page(make_evaluation: Make, make_run: Make, tmp_path: Path) -> Page:
    make_run()
    return report(tmp_path, make_evaluation())


def test_the_page_is_complete_and_has_every_section(page: Page) -> None:
    assert [tag for tag, _ in page.elements].count("h1") == 1
    names = ("scores", "classes", "confusion", "calibration", "images", "training", "provenance")
    sections = [*(f"{name}-1" for name in names), "method"]
    assert [name for name in page.ids if name in sections] == sections
    assert len(page.ids) == len(set(page.ids))
    targets = [found["href"][1:] for tag, found in page.elements if tag == "a"]
    assert targets == sections
    labels = [found["aria-labelledby"] for _, found in page.elements if "aria-labelledby" in found]
    assert set(labels) <= set(page.ids)
    assert all(found.get("alt") for tag, found in page.elements if tag == "img")
    described = [found for tag, found in page.elements if tag == "svg"]
    assert all(found.get("aria-label") or found.get("aria-hidden") for found in described)
    assert page.count("html", lang="en") == 1


def test_nothing_is_fetched(page: Page) -> None:
    for tag, found in page.elements:
        for key, value in found.items():
            if key in _FETCHING:
                assert value.startswith(("data:", "#")), (tag, key, value[:80])
            assert not key.startswith("on"), (tag, key)
    style = re.search(r"<style>(.*?)</style>", page.text, re.DOTALL).group(1)
    assert "url(" not in style
    assert "@import" not in style
    policy = next(found["content"] for tag, found in page.elements if found.get("http-equiv"))
    assert policy.startswith("default-src 'none'; img-src data:;")
    digest = base64.b64encode(hashlib.sha256(page.scripts[-1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy


def test_names_never_become_markup(page: Page) -> None:
    assert page.count("script") == 1
    assert "alert(1)" not in "".join(page.scripts)
    assert page.count("b") == 0
    assert not any(found.get("src") == "x" for _, found in page.elements)
    assert "<script>alert(1)</script>" in page.texts  # a class's name, as text
    assert '"><img src=x>' in page.texts
    assert any(text.startswith("pspnet evaluate <script>") for text in page.texts)
    assert any("&<b> \u2013 mIoU" in text for text in page.texts)


def test_names_stay_data_if_the_matrix_is_an_image(make_evaluation: Make, tmp_path: Path) -> None:
    page = report(tmp_path, make_evaluation(classes=40))
    assert page.count("script") == 2
    content = json.loads(page.scripts[0])
    assert content["names"][1] == "<script>alert(1)</script>"
    assert page.count("image") == 1
    assert page.count("table", **{"class": "confusion"}) == 0


def test_values_equal_those_of_the_evaluation(page: Page, tmp_path: Path) -> None:
    scores = Scores.from_counts(read_records(tmp_path / "scores" / "per_image.npz")["whole"].total())
    start = page.texts.index("mIoU")
    assert page.texts[start + 1] == f"{100 * scores.mIOU:.1f}"
    low, high = (float(part) for part in page.texts[start + 2].split("\u2013"))
    assert low < 100 * scores.mIOU < high
    assert f"{100 * scores.pixel_accuracy:.1f}" in page.texts
    assert page.count("img") == 4 * 8  # eight images: three best, three worst, two median
    assert page.count("polyline") == 4
    assert "Best validation mIoU 50.0 % at epoch 5 of 6." in page.texts
    facts = " ".join(page.texts)
    assert "crop_size 40" in facts
    assert "Fingerprint of images" in facts
    assert "torch " in facts


def test_missing_counts_are_left_out(make_evaluation: Make, tmp_path: Path) -> None:
    page = report(tmp_path, make_evaluation(details=()), samples=0)
    assert "calibration-1" not in page.ids
    assert "images-1" not in page.ids
    assert "training-1" not in page.ids
    assert "Boundary IoU" not in page.texts
    assert page.count("img") == 0


def test_moved_images_are_reported_and_found_with_options(make_evaluation: Make, tmp_path: Path) -> None:
    folder = make_evaluation()
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    page = report(tmp_path, folder)
    assert page.count("img") == 0
    assert any("Give --images and --annotations if the data was moved" in text for text in page.texts)
    moved = tmp_path / "elsewhere"
    assert report(tmp_path, folder, images=moved / "images", annotations=moved / "targets").count("img") == 32
    with pytest.raises(DataError, match="does not exist"):
        report(tmp_path, folder, images=tmp_path / "nowhere")


def test_two_evaluations_are_compared_with_paired_intervals(make_evaluation: Make, tmp_path: Path) -> None:
    first, second = make_evaluation(name="first"), make_evaluation(name="second", seed=2)
    page = report(tmp_path, first, second)
    assert page.ids[0] == "comparison"
    assert {"run-1", "run-2", "scores-1", "scores-2"} <= set(page.ids)
    totals = [Scores.from_counts(read_records(folder / "per_image.npz")["whole"].total()) for folder in (first, second)]
    assert signed(totals[1].mIOU - totals[0].mIOU) in page.texts
    assert page.count("details", **{"class": "run"}) == 2


def test_the_same_evaluation_twice_has_no_differences(make_evaluation: Make, tmp_path: Path) -> None:
    page = report(tmp_path, make_evaluation(name="first"), make_evaluation(name="second"))
    assert any(text.startswith("The intervals of 0 differences exclude 0.") for text in page.texts)
    assert page.count("td", **{"class": "clear"}) == 0
    assert "0.0 to 0.0" in page.texts


def test_evaluations_of_other_images_are_rejected(make_evaluation: Make, make_run: Make, tmp_path: Path) -> None:
    first = make_evaluation(name="first")
    other = make_evaluation(name="other", images=7)
    with pytest.raises(
        DataError, match=r"other \(whole\) cannot be compared with .*first \(whole\): their images differ"
    ):
        report(tmp_path, first, other)
    with pytest.raises(DataError, match="they have 5 and 4 classes"):
        report(tmp_path, first, make_evaluation(name="fewer", classes=4))
    with pytest.raises(DataError, match="a training run has no per-image counts"):
        report(tmp_path, first, make_run())
    assert not (tmp_path / "report.html").exists()


def test_protocols_are_shown_side_by_side(make_evaluation: Make, tmp_path: Path) -> None:
    page = report(tmp_path, make_evaluation(protocols=("whole", "slide", "builtin")))
    assert "Protocols side by side" in page.texts
    assert page.ids.count("comparison") == 1
    assert {"whole", "slide", "builtin"} <= set(page.texts)


def test_a_run_alone_has_no_intervals(make_run: Make, tmp_path: Path) -> None:
    page = report(tmp_path, make_run())
    start = page.texts.index("mIoU")
    assert page.texts[start : start + 3] == ["mIoU", "62.5", "\u2013"]
    assert "confusion-1" not in page.ids
    assert "training-1" in page.ids


def test_numbers_as_text() -> None:
    assert percent(0.12345) == "12.3"
    assert percent(float("nan")) == percent(None) == "\u2013"
    assert signed(-0.0351) == "\u22123.5"
    assert signed(0.0351) == "+3.5"
    assert signed(-0.0001) == signed(0.0) == "0.0"
