"""The page of alignments, in a real browser: Chromium, driven by playwright. Skipped where either is missing."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rnnsearch.alignment import Alignment
from rnnsearch.page import write_page

SOURCE, TARGET = ["Der", "</script><b>Hund</b>", "läuft"], ["The", "dog", "runs", "&amp;"]
WEIGHTS = torch.tensor(
    [
        [0.90, 0.05, 0.03, 0.02],
        [0.10, 0.70, 0.15, 0.05],
        [0.01, 0.29, 0.60, 0.10],
        [0.02, 0.02, 0.06, 0.90],
        [0.00, 0.00, 0.00, 1.00],
    ]
)
PAIR = Alignment(SOURCE, TARGET, WEIGHTS, -2.0)
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def write(folder: Path) -> Path:
    write_page(folder / "page.html", [PAIR, Alignment(["x"], ["y"], torch.eye(2), 0.0)], title="<Attention> & more")
    return folder / "page.html"


def test_the_page_needs_nothing_else_and_holds_every_weight(tmp_path):
    text = write(tmp_path).read_text(encoding="utf-8")
    assert not re.search(r"https?:|src=|@import|url\(", text)
    assert "{{" not in text and "<title>&lt;Attention&gt; &amp; more</title>" in text
    (data,) = re.findall(r'<script type="application/json" id="pairs">(.*?)</script>', text, re.DOTALL)
    assert json.loads(data)[0] == PAIR.to_dict()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is there")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=flags)
        opened = browser.new_page(viewport={"width": 900, "height": 600})
        opened.errors = []
        opened.on("pageerror", lambda error: opened.errors.append(str(error)))
        opened.on("console", lambda said: opened.errors.append(said.text) if said.type == "error" else None)
        opened.goto(write(tmp_path_factory.mktemp("page")).as_uri())
        yield opened
        browser.close()


def words(page: Any, side: str, pair: int = 0) -> Any:
    return page.locator("section").nth(pair).locator(f".{side} .word")


def shown(page: Any, side: str) -> list[float]:
    """The weight behind each word, as the browser paints it: the opacity of its background."""
    colours = words(page, side).evaluate_all("all => all.map(word => getComputedStyle(word).backgroundColor)")
    alphas = [re.fullmatch(r"rgba\(.*, ([\d.]+)\)", colour) for colour in colours]  # rgb(...) where it is opaque
    return [1.0 if alpha is None else float(alpha[1]) for alpha in alphas]


def test_words_stand_as_they_are_written(page):
    assert words(page, "source").all_text_contents() == [*SOURCE, "end"]
    assert words(page, "target").all_text_contents() == [*TARGET, "end"]
    assert page.locator("section").count() == 2 and page.locator("section b").count() == 0
    assert page.title() == "<Attention> & more" and page.errors == []


@pytest.mark.parametrize("place", range(5))
def test_hovering_a_target_word_shows_what_it_attended_to(page, place):
    words(page, "target").nth(place).hover()
    assert shown(page, "source") == pytest.approx(WEIGHTS[place].tolist(), abs=0.005)
    assert shown(page, "target") == [0] * 5
    said = page.locator(".said").first.text_content()
    assert said.startswith(f"{[*TARGET, 'end'][place]} ← {[*SOURCE, 'end'][int(WEIGHTS[place].argmax())]} ")
    assert f" {round(100 * float(WEIGHTS[place].max()))} %" in said


@pytest.mark.parametrize("place", range(4))
def test_hovering_a_source_word_shows_what_attended_to_it(page, place):
    words(page, "source").nth(place).hover()
    assert shown(page, "target") == pytest.approx(WEIGHTS[:, place].tolist(), abs=0.005)
    assert shown(page, "source") == [0] * 4


def test_leaving_a_word_clears_what_it_showed_and_pairs_do_not_mix(page):
    words(page, "target").nth(1).hover()
    words(page, "target", pair=1).nth(0).hover()
    assert shown(page, "source") == [0] * 4
    assert (
        page.locator(".said").nth(0).text_content() == ""
        and page.locator(".said").nth(1).text_content() == "y ← x 100 %"
    )
    page.mouse.move(890, 590)
    assert page.locator(".said").all_text_contents() == ["", ""]


def test_the_keyboard_asks_as_well(page):
    words(page, "target").nth(0).focus()
    page.keyboard.press("Tab")
    assert shown(page, "source") == pytest.approx(WEIGHTS[1].tolist(), abs=0.005)
    assert page.locator(".asked").text_content() == TARGET[1] and page.errors == []
    page.evaluate("document.activeElement.blur()")
