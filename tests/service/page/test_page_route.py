"""The page and its files as HTTP and as text: what needs no browser to be seen."""

from __future__ import annotations

import re

import pytest
from fastapi.testclient import TestClient

from service.http.routes.page import FOLDER

TYPES = {".js": {"text/javascript", "application/javascript"}, ".css": {"text/css"}, ".svg": {"image/svg+xml"}}
ASSETS = sorted(path.name for path in FOLDER.iterdir() if path.suffix in TYPES)


def policy_of(answer: object) -> dict[str, str]:
    parts = answer.headers["content-security-policy"].split("; ")  # type: ignore[attr-defined]
    return dict(part.split(" ", 1) for part in parts)


@pytest.mark.parametrize("accept", ["text/html,*/*;q=0.8", "*/*", "", "text/html,application/json"])
def test_browsers_and_others_get_the_page(client: TestClient, accept: str) -> None:
    answer = client.get("/", headers={"accept": accept}, follow_redirects=False)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["vary"] == "accept"
    assert answer.text.startswith("<!doctype html>")
    assert policy_of(answer)["default-src"] == "'self'"
    assert set(policy_of(answer).values()) <= {"'self'", "'none'"}


def test_programs_are_led_to_info(client: TestClient) -> None:
    answer = client.get("/", headers={"accept": "application/json"})
    assert answer.history[0].status_code == 307
    assert answer.json() == client.get("/info").json()


def test_head_and_wrong_methods(client: TestClient) -> None:
    head, get = client.head("/"), client.get("/")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == get.headers["content-length"] == str(len(get.content))
    wrong = client.post("/")
    assert (wrong.status_code, wrong.json()["error_type"]) == (405, "method_not_allowed")


def test_every_asset_has_its_type_and_the_policy(client: TestClient) -> None:
    assert len(ASSETS) >= 7
    for name in ASSETS:
        answer = client.get(f"/page/{name}")
        assert answer.status_code == 200
        assert answer.headers["content-type"].split(";")[0] in TYPES["." + name.rsplit(".")[-1]], name
        assert (answer.headers["x-content-type-options"], answer.headers["cache-control"]) == ("nosniff", "no-cache")
        assert policy_of(answer)["default-src"] == "'self'"
        again = client.get(f"/page/{name}", headers={"if-none-match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("path", ["/page/none.js", "/page/../app.py", "/page/%2e%2e/app.py", "/page/"])
def test_nothing_else_is_served(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert (answer.status_code, answer.json()["error_type"]) == (404, "not_found")


def test_icon_for_those_who_ask_without_a_page(client: TestClient) -> None:
    assert client.get("/favicon.ico").headers["content-type"] == "image/svg+xml"
    assert client.head("/favicon.ico").status_code == 200


def test_the_page_links_only_to_what_exists(client: TestClient) -> None:
    page = client.get("/").text
    links = set(re.findall(r'(?:href|src)="([^"#]+)"', page))
    assert links >= {"page/page.css", "page/main.js", "page/icon.svg", "docs", "info", "metrics"}
    for link in links:
        assert not link.startswith(("/", "http")), f"{link} would leave a proxy's prefix"
        assert client.get(f"/{link}").status_code == 200, link
    for name in ASSETS:
        for imported in re.findall(r'from "\./([^"]+)"', (FOLDER / name).read_text(encoding="utf-8")):
            assert imported in ASSETS


def test_the_page_keeps_its_own_policy() -> None:
    page = (FOLDER / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"\son\w+=|\sstyle=|<style|<script(?![^>]*\ssrc=)", page)
    markup = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\("
    elsewhere = r"https?://(?!www\.w3\.org/2000/svg)"
    for path in FOLDER.glob("*.js"):
        assert not re.search(f"{markup}|{elsewhere}", path.read_text(encoding="utf-8")), path


def test_every_control_is_labelled_and_every_reference_resolves() -> None:
    page = (FOLDER / "index.html").read_text(encoding="utf-8")
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    for field in re.findall(r'<(?:textarea|input) id="([^"]+)"', page):
        assert f'<label for="{field}">' in page
    for names in re.findall(r'(?:aria-labelledby|aria-describedby|aria-controls|for)="([^"]+)"', page):
        assert set(names.split()) <= set(ids)
    scripts = "".join(path.read_text(encoding="utf-8") for path in FOLDER.glob("*.js"))
    assert set(re.findall(r'getElementById\("([^"]+)"\)', scripts)) <= set(ids)
