"""The page in a real Chromium, in front of a real server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import httpx
import pytest

from service.http.app import create_app
from service.models.registry import ModelRegistry
from service.settings import Settings
from tests.service.browser import CHROMIUM, Browser, running_browser
from tests.service.conftest import open_registry
from tests.service.running import running_server

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium (Debian's package chromium) is installed")

COMPARED = "!document.getElementById('pair').hidden && !document.querySelector('.primary').disabled"
CONTEXT = "😀👩‍👩‍👧 The book is very good. It was written by Ada in Paris. <b>bold</b>"


@pytest.fixture(scope="module")
def url(classify_folder: Path, qa_folder: Path) -> Iterator[str]:
    app = create_app(Settings(payload_limit=20_000, threads=1), open_registry(classify_folder, qa_folder))
    with running_server(app) as url:
        yield url


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with running_browser(tmp_path_factory.mktemp("chromium") / "profile") as browser:
        yield browser


@pytest.fixture
def browser(shared: Browser, url: str) -> Browser:
    """A freshly loaded page of ordinary size in light colours."""
    shared.resize(1280, 900)
    shared.prefer(prefers_color_scheme="light")
    shared.open(f"{url}/")
    shared.complaints.clear()
    return shared


def texts(browser: Browser, selector: str) -> list[str]:
    return browser.run(f"[...document.querySelectorAll({selector!r})].map((e) => e.textContent)")


def test_loads_quietly_and_says_that_there_is_no_traffic(shared: Browser, url: str) -> None:
    shared.complaints.clear()
    shared.open(f"{url}/")
    shared.wait("document.querySelectorAll('.chart svg').length === 2")
    shared.wait("document.getElementById('live-state').textContent === 'No traffic yet.'")
    assert texts(shared, ".chart .empty") == ["No answers since this page was opened."] * 2
    assert shared.complaints == []


def test_enter_shows_both_answers_and_then_the_charts(browser: Browser) -> None:
    browser.run("document.getElementById('text').focus()")
    browser.press("Enter", 13, "\r")
    browser.wait(COMPARED)
    assert texts(browser, ".answer h3") == ["fp32", "int8"]
    assert len(texts(browser, ".answer .rows:not(.costs) .row")) == 6  # three labels each
    assert "8-8-8 bits, kernel fbgemm" in texts(browser, ".answer-head span")
    assert texts(browser, "#summary")[0].startswith(("Both say", "They differ"))
    assert len(texts(browser, "#facts li")) == 3
    widths = browser.run("[...document.querySelectorAll('.bar i')].map((e) => parseFloat(e.style.width))")
    assert len(widths) == 10
    assert sum(widths[:3]) == pytest.approx(100, abs=0.1)
    assert browser.run("document.activeElement.id") == "text"
    browser.wait("document.querySelectorAll('.chart .fp32').length && document.querySelectorAll('.chart .int8').length")
    assert browser.complaints == []


def test_a_number_stands_without_label_and_percent(shared: Browser, number_folder: Path) -> None:
    with running_server(create_app(Settings(threads=1), open_registry(number_folder))) as url:
        shared.open(f"{url}/#{urlencode({'text': 'the film is good'})}")
        shared.wait(COMPARED)
        assert texts(shared, "#summary")[0].startswith("fp32 says")
        assert shared.run("document.getElementById('summary').className") == ""
        assert "%" not in "".join(texts(shared, ".answer"))
        bodies = [{"inputs": "the film is good", "backend": backend} for backend in ("fp32", "int8")]
        numbers = [httpx.post(f"{url}/classify", json=body).json()[0][0]["score"] for body in bodies]
        assert [float(text) for text in texts(shared, ".answer .headline")] == pytest.approx(numbers, rel=1e-4)


@pytest.mark.parametrize("size", [(1280, 900), (360, 700)])
def test_the_highlight_is_the_answer_behind_emoji(browser: Browser, url: str, size: tuple[int, int]) -> None:
    browser.resize(*size)
    browser.open(f"{url}/#{urlencode({'question': 'who wrote it?', 'context': CONTEXT})}")
    browser.wait(COMPARED)
    body = json.dumps({"question": "who wrote it?", "context": CONTEXT})
    ask = f"fetch('compare', {{method: 'POST', headers: {{'content-type': 'application/json'}}, body: {body!r}}})"
    results = browser.run(f"{ask}.then((r) => r.json())")["results"]
    answers = [results[backend]["answer"] for backend in ("fp32", "int8")]
    assert texts(browser, "mark") == [CONTEXT[a["start"] : a["end"]] for a in answers] == [a["answer"] for a in answers]
    assert texts(browser, ".passage") == [CONTEXT] * 2
    before = "[...document.querySelectorAll('mark')].map((e) => e.previousSibling?.textContent ?? '')"
    assert browser.run(before) == [CONTEXT[: a["start"]] for a in answers]
    assert browser.run("document.querySelectorAll('.passage b').length") == 0
    assert browser.run("document.getElementById('tab-qa').getAttribute('aria-selected')") == "true"
    assert browser.run("document.documentElement.scrollWidth") == size[0]


def test_errors_are_told_in_the_service_s_words_and_nothing_is_lost(browser: Browser) -> None:
    browser.run("document.querySelector('#panel-classify form').requestSubmit()")
    browser.wait(COMPARED)
    shown = texts(browser, ".answer")
    browser.run("document.getElementById('text').value = 'good '.repeat(5000)")
    browser.run("document.querySelector('#panel-classify form').requestSubmit()")
    browser.wait("!document.getElementById('error').hidden")
    assert "at most 20000 bytes are taken" in texts(browser, "#error p")[0]
    assert browser.run("document.getElementById('text').value.length") == 25000
    assert texts(browser, ".answer") == shown
    browser.wait("!document.querySelector('.primary').disabled")
    browser.call("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0)
    browser.run("document.querySelector('#panel-classify form').requestSubmit()")
    browser.wait("document.getElementById('error').textContent.startsWith('The service does not answer')")
    browser.call(
        "Network.emulateNetworkConditions", offline=False, latency=0, downloadThroughput=-1, uploadThroughput=-1
    )
    browser.wait("!document.querySelector('.primary').disabled")
    browser.run("document.getElementById('text').value = 'good'")
    browser.run("document.querySelector('#panel-classify form').requestSubmit()")
    browser.wait("document.getElementById('error').hidden")


def test_two_models_can_be_compared_and_linked(shared: Browser, classify_folder: Path, qa_folder: Path) -> None:
    named = [("one", classify_folder), ("two", classify_folder), ("answers", qa_folder)]
    registry = ModelRegistry.open([], ("fp32", "int8"), threads=1, named=named)
    with running_server(create_app(Settings(threads=1), registry)) as url:
        shared.complaints.clear()
        shared.open(f"{url}/")
        shared.wait("document.querySelectorAll('select').length === 2")  # one model answers questions
        everything = ["one@fp32", "one@int8", "two@fp32", "two@int8"]
        assert texts(shared, "#classify-variant-0 option") == texts(shared, "#classify-variant-1 option") == everything
        assert shared.run("[...document.querySelectorAll('select')].map((e) => e.value)") == everything[:2]
        shared.run("document.getElementById('classify-variant-0').value = 'two@int8'")
        shared.run("document.querySelector('#panel-classify form').requestSubmit()")
        shared.wait(COMPARED)
        assert texts(shared, ".answer h3") == ["two@int8", "one@int8"]
        assert texts(shared, "#facts li")[1].endswith("one@int8’s weights")
        link = shared.run("document.getElementById('permalink').href")
        shared.open(f"{url}/info")
        shared.open(link)
        shared.wait(COMPARED)
        assert texts(shared, ".answer h3") == ["two@int8", "one@int8"]
        assert shared.complaints == []


def test_tabs_follow_the_arrow_keys(browser: Browser) -> None:
    browser.run("document.getElementById('tab-classify').focus()")
    right, left, end, home = ("ArrowRight", 39), ("ArrowLeft", 37), ("End", 35), ("Home", 36)
    steps = ((right, "qa"), (right, "classify"), (end, "qa"), (left, "classify"), (left, "qa"), (home, "classify"))
    for key, chosen in steps:
        browser.press(*key)
        assert browser.run("document.activeElement.id") == f"tab-{chosen}"
        panels = "[...document.querySelectorAll('[role=tabpanel]')].filter((e) => !e.hidden).map((e) => e.id)"
        assert browser.run(panels) == [f"panel-{chosen}"]
    browser.press("Tab", 9)
    assert browser.run("document.activeElement.id") == "text"


def test_shift_enter_writes_a_line_and_a_composed_enter_submits_nothing(browser: Browser) -> None:
    composed = "new KeyboardEvent('keydown', {key: 'Enter', isComposing: true, bubbles: true, cancelable: true})"
    shifted = composed.replace("isComposing", "shiftKey")
    for event in (composed, shifted):
        assert browser.run(f"document.getElementById('text').dispatchEvent({event})") is True
    assert browser.run("document.querySelector('.primary').disabled") is False


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_both_schemes(browser: Browser, scheme: str) -> None:
    browser.prefer(prefers_color_scheme=scheme, prefers_reduced_motion="reduce")
    browser.run("document.querySelector('#panel-classify form').requestSubmit()")
    browser.wait(COMPARED)
    colours = """
      [...document.querySelectorAll("h1, .brand p, nav a, [role=tab], label, .hint, .primary, #summary, .facts li,"
        + ".answer h3, .answer-head span, .value, .fine-print, figcaption, textarea")].map((element) => {
          const style = (of) => getComputedStyle(of);
          let ground = element;
          while (style(ground).backgroundColor === "rgba(0, 0, 0, 0)") ground = ground.parentElement;
          return [element.className || element.tagName, style(element).color, style(ground).backgroundColor];
      })
    """
    found = browser.run(colours)
    assert len(found) > 20
    for name, ink, ground in found:
        assert contrast(ink, ground) >= 4.5, (name, ink, ground)  # WCAG 2, level AA
    (paper,) = {browser.run("getComputedStyle(document.body).backgroundColor")}
    assert (luminance(paper) < 0.1) == (scheme == "dark")


def contrast(one: str, other: str) -> float:
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it, of ``rgb(r, g, b)``."""
    channels = [int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_a_service_with_keys_is_asked_with_one(shared: Browser, classify_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("a-key-for-the-page\n")
    settings = Settings(threads=1, api_key_file=tmp_path / "keys", protect_metrics=True)
    with running_server(create_app(settings, open_registry(classify_folder))) as locked:
        shared.open(f"{locked}/")
        shared.run("document.querySelector('form[data-task=classify]').requestSubmit()")
        for key in ("a-wrong-key-of-the-page", "a-key-for-the-page"):
            shared.wait("document.activeElement?.id === 'api-key' && document.activeElement.value === ''")
            assert "wants an API key" in texts(shared, "#error")[0]
            shared.run(f"document.activeElement.value = '{key}'; document.activeElement.form.requestSubmit()")
        shared.wait(COMPARED)
        shared.wait("document.getElementById('error').hidden")
        # the charts have the key as well
        shared.wait("/^(Every|No traffic)/.test(document.getElementById('live-state').textContent)")
    shared.run("sessionStorage.clear()")
    shared.complaints.clear()
