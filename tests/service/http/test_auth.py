"""Keys: where they come from, which routes ask for them, and that nothing shows them."""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from starlette.routing import Mount

from q8core.errors import InputError
from service import __main__
from service.http.app import create_app
from service.lifecycle import State
from service.operations.keys import KeyRing, hash_key, load_keys
from service.settings import Settings, unknown_variables
from tests.service.conftest import open_registry

KEY, OTHER, ADMIN = "a-key-of-the-tests", "another-key-of-tests", "the-admin-key-here"
OPEN = {"/livez", "/readyz", "/health", "/metrics", "/", "/favicon.ico", "/docs", "/openapi.json", "/page/main.js"}
OPEN |= {"/docs/oauth2-redirect", "/v2/health/live", "/v2/health/ready"}
BODIES = {
    "/classify": {"inputs": "good"},
    "/qa": {"question": "who?", "context": "ada wrote it"},
    "/question-answering": {"question": "who?", "context": "ada wrote it"},
    "/compare": {"inputs": "good"},
}


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@contextmanager
def running(folder: Path, variables: dict[str, str], **settings: object) -> Iterator[TestClient]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        app = create_app(Settings(threads=1, **settings), open_registry(folder))  # type: ignore[arg-type]
    with TestClient(app, raise_server_exceptions=False) as client:
        assert app.state.service.lifecycle.wait_until_settled(240) is State.READY
        yield client


@pytest.fixture(scope="module")
def locked(classify_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    file = tmp_path_factory.mktemp("keys") / "api.keys"
    file.write_text(f"# of the tests\n{KEY}\n\n{hash_key(OTHER)}\n")
    variables = {"Q8BERT_ADMIN_KEY": ADMIN}
    with running(classify_folder, variables, api_key_file=file, cors_allow_origin=("https://a.example",)) as client:
        yield client


def paths_of(app: FastAPI) -> set[str]:
    return set(app.openapi()["paths"]) | {r.path for r in app.routes if isinstance(r, APIRoute) and "{" not in r.path}


def test_every_route_but_the_open_ones_asks_for_a_key(locked: TestClient) -> None:
    app = locked.app
    assert isinstance(app, FastAPI)
    paths = {path.replace("{name}", "x") for path in paths_of(app)}
    assert paths >= {"/classify", "/qa", "/compare", "/info", "/admin/models", "/admin/models/x", "/metrics"}
    assert [route.path for route in app.routes if isinstance(route, Mount)] == ["/static-offline-docs", "/page"]
    for path in paths | OPEN | {"/nothing", "/admin", "/admin/x", "/page", "/pages", "/classify/", "/docs/x"}:
        for method in ("GET", "POST", "DELETE", "PUT", "HEAD"):
            answer = locked.request(method, path)
            assert (answer.status_code == 401) == (path not in OPEN), (method, path, answer.status_code)


def test_the_answer_without_a_key(locked: TestClient) -> None:
    answer = locked.post("/classify", json={"inputs": "good"})
    body = answer.json()
    assert (answer.status_code, body["error_type"]) == (401, "unauthorized")
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert body["request_id"] == answer.headers["x-request-id"]
    assert "Bearer KEY" in body["error"]
    count = locked.app.state.service.metrics.registry.get_sample_value  # type: ignore[attr-defined]
    labels = {"task": "classify", "backend": "none", "code": "401"}
    before = count("q8bert_requests_total", labels)
    locked.post("/classify", content=b"no JSON, and not read")
    assert count("q8bert_requests_total", labels) == before + 1


@pytest.mark.parametrize("path", ["/classify", "/compare"])
@pytest.mark.parametrize("key", [KEY, OTHER])
def test_a_key_from_the_file_opens(locked: TestClient, path: str, key: str) -> None:
    assert locked.post(path, json=BODIES[path], headers=bearer(key)).status_code == 200
    lower = {"Authorization": f"bearer  {key} "}
    assert locked.post(path, json=BODIES[path], headers=lower).status_code == 200


@pytest.mark.parametrize(
    "value",
    [
        *("", "Bearer", "Bearer ", f"Basic {KEY}", KEY, f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", f"Bearer {KEY} {KEY}"),
        f"Bearer {ADMIN}",
        f"Bearer {hash_key(OTHER)}",  # who reads the file of hashes holds no key
        f"Bearer {hash_key(OTHER).removeprefix('sha256:')}",
        "Bearer \xe9",
    ],
)
def test_other_headers_do_not_open(locked: TestClient, value: str) -> None:
    headers = [(b"authorization", value.encode("latin-1"))]
    answer = locked.post("/classify", json={"inputs": "good"}, headers=headers)  # type: ignore[arg-type]
    assert (answer.status_code, answer.json()["error_type"]) == (401, "unauthorized")


def test_two_headers_do_not_open(locked: TestClient) -> None:
    headers = [("authorization", f"Bearer {KEY}"), ("authorization", f"Bearer {KEY}")]
    assert locked.post("/classify", json={"inputs": "good"}, headers=headers).status_code == 401  # type: ignore[arg-type]


def test_the_admin_key_opens_admin_and_api_keys_do_not(locked: TestClient) -> None:
    assert locked.get("/admin/models", headers=bearer(ADMIN)).status_code == 200
    for key in (KEY, OTHER):
        assert locked.get("/admin/models", headers=bearer(key)).status_code == 401
    refused = locked.post("/admin/models", json={"path": "/etc"}, headers=bearer(ADMIN))
    assert (refused.status_code, refused.json()["error_type"]) == (403, "path_not_allowed")
    assert "--model-root" in refused.json()["error"]


def test_without_keys_there_is_no_admin_and_data_is_open(client: TestClient) -> None:
    for method in ("GET", "POST"):
        answer = client.request(method, "/admin/models", headers=bearer(ADMIN))
        assert (answer.status_code, answer.json()["error_type"]) == (404, "not_found")
    assert "admin" not in client.get("/openapi.json").text
    assert client.get("/info", headers=bearer("anything")).status_code == 200


def test_docs_ask_for_the_key_and_can_be_left_out(locked: TestClient, classify_folder: Path) -> None:
    document = locked.get("/openapi.json").json()
    assert document["paths"]["/classify"]["post"]["security"] == [{"api key": []}]
    assert document["paths"]["/admin/models"]["post"]["security"] == [{"admin key": []}]
    assert "security" not in document["paths"]["/livez"]["get"]
    with running(classify_folder, {}, docs=False, backends=("fp32", "int8")) as client:
        for path in ("/docs", "/openapi.json", "/redoc", "/static-offline-docs/swagger-ui.css"):
            assert client.get(path).json()["error_type"] == "not_found"
        assert client.get("/").status_code == client.get("/info").status_code == 200


def test_protected_metrics_and_keys_from_the_environment(classify_folder: Path) -> None:
    variables = {"Q8BERT_API_KEYS": f"{hash_key(KEY)}, {hash_key(OTHER)}"}
    with running(classify_folder, variables, protect_metrics=True) as client:
        assert client.get("/metrics").status_code == 401
        assert client.get("/metrics", headers=bearer(OTHER)).status_code == 200
        assert client.get("/readyz").status_code == 200
        assert client.get("/admin/models", headers=bearer(KEY)).status_code == 404


def test_origins(locked: TestClient, client: TestClient) -> None:
    asks = {"origin": "https://a.example", "access-control-request-method": "POST"}
    preflight = locked.options("/classify", headers={**asks, "access-control-request-headers": "authorization"})
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "https://a.example"
    assert "access-control-allow-credentials" not in preflight.headers
    answer = locked.get("/info", headers={"origin": "https://a.example"})
    assert answer.status_code == 401
    assert answer.headers["access-control-allow-origin"] == "https://a.example"
    assert "x-request-id" in answer.headers["access-control-expose-headers"]
    assert "access-control-allow-origin" not in locked.get("/info", headers={"origin": "https://b.example"}).headers
    # off by default
    for found in (client.get("/info", headers={"origin": "https://a.example"}), client.options("/info", headers=asks)):
        assert not [name for name in found.headers if name.startswith("access-control")]


@pytest.mark.parametrize("origin", ["a.example", "https://a.example/", "https://", "ftp://a", "https://u@a.example"])
def test_what_is_no_origin_is_named(origin: str) -> None:
    with pytest.raises(ValueError, match="is no origin"):
        Settings(cors_allow_origin=(origin,))


def test_no_key_is_shown(
    classify_folder: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    keys = {"Q8BERT_API_KEYS": hash_key(KEY), "Q8BERT_ADMIN_KEY": ADMIN}
    with caplog.at_level(logging.DEBUG), running(classify_folder, keys, log_level="debug") as client:
        texts = [client.get("/info", headers=bearer(KEY)).text, client.get("/metrics").text]
        texts.append(client.get("/admin/models", headers=bearer(ADMIN)).text)
        texts += [client.get(path, headers=bearer(OTHER)).text for path in ("/info", "/admin/models")]
        service = client.app.state.service  # type: ignore[attr-defined]
        texts += [repr(service.settings), repr(vars(service))]
    texts += [caplog.text, *capfd.readouterr()]
    for text in texts:
        for key in (KEY, OTHER, ADMIN, hash_key(KEY), hash_key(KEY).removeprefix("sha256:")):
            assert key not in text


def write(folder: Path, content: bytes) -> Path:
    (folder / "keys").write_bytes(content)
    return folder / "keys"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "holds no key"),
        (b"# nothing\n\n", "holds no key"),
        (b"secret", "line 1: a key has at least 16 characters, this one 6"),
        (b"a-good-key-of-16-chars\nsecret words of a key\n", "line 2: a key consists of"),
        (b"sha256:secret-secret", "line 1: sha256: is followed by 13 characters"),
        (b"\xff\xfe", "not UTF-8"),
    ],
)
def test_wrong_key_files_are_named_and_not_quoted(tmp_path: Path, content: bytes, words: str) -> None:
    for field in ("api_key_file", "admin_key_file"):
        with pytest.raises(InputError) as error:
            load_keys(Settings(**{field: write(tmp_path, content)}))  # type: ignore[arg-type]
        assert words in str(error.value)
        assert "secret" not in str(error.value)


def test_missing_file_and_wrong_variables_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: No such file"):
        load_keys(Settings(api_key_file=tmp_path / "none"))
    for value in ("a-plain-key-is-no-hash", f"{hash_key(KEY)},a-plain-key-is-no-hash"):
        with pytest.raises(InputError, match="Q8BERT_API_KEYS, entry") as error:
            load_keys(Settings(), {"Q8BERT_API_KEYS": value})
        assert "a-plain" not in str(error.value)
    with pytest.raises(InputError, match="Q8BERT_ADMIN_KEY: a key has at least 16"):
        load_keys(Settings(), {"Q8BERT_ADMIN_KEY": "short"})


def test_an_application_whose_keys_are_wrong_does_not_start(classify_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no key"):
        create_app(Settings(api_key_file=write(tmp_path, b"")), open_registry(classify_folder))


def test_empty_variables_count_as_not_set() -> None:
    keys = load_keys(Settings(), {"Q8BERT_API_KEYS": "", "Q8BERT_ADMIN_KEY": " "})
    assert (len(keys.api), len(keys.admin)) == (0, 0)
    assert not unknown_variables({"Q8BERT_API_KEYS": "", "Q8BERT_ADMIN_KEY": ""})


def test_a_ring_knows_its_keys_and_no_others() -> None:
    ring = KeyRing(hashlib.sha256(key.encode()).digest() for key in (KEY, OTHER, KEY))
    assert len(ring) == 2
    assert ring.accepts(KEY.encode())
    assert ring.accepts(OTHER.encode())
    for key in (b"", KEY[1:].encode(), hashlib.sha256(KEY.encode()).digest()):
        assert not ring.accepts(key)
    assert not KeyRing().accepts(b"")


@pytest.fixture
def run_hash_key(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    def run(*arguments: str, stdin: str = "") -> list[str]:
        monkeypatch.setattr("sys.argv", ["q8bert", "hash-key", *arguments])
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        with pytest.raises(SystemExit) as end:
            __main__.main()
        out, err = capsys.readouterr()
        return [str(end.value.code or 0), *(out + err).splitlines()]

    return run


def test_hash_key_command(run_hash_key: Callable[..., list[str]], tmp_path: Path) -> None:
    # the documented one-liner, without the package
    expected = "sha256:" + hashlib.sha256(KEY.encode()).hexdigest()
    assert run_hash_key(stdin=f"{KEY}\n") == ["0", expected]
    code, key, hashed = run_hash_key("--new")
    assert code == "0"
    assert load_keys(Settings(api_key_file=write(tmp_path, hashed.encode()))).api.accepts(key.encode())
    assert run_hash_key("--new")[1] != key
    assert run_hash_key(stdin="short\n") == ["2", "error: the key: a key has at least 16 characters, this one 5"]
