from __future__ import annotations

import re
from pathlib import Path

from fastapi.testclient import TestClient

from service.errors import ERROR_KINDS, HTTP_KINDS


def test_inference_routes_document_every_status_they_give(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    for path in ("/classify", "/qa", "/compare"):
        responses = paths[path]["post"]["responses"]
        assert set(responses) == {"200", "400", "401", "404", "408", "413", "415", "422", "429", "500", "503", "504"}
        for status in set(responses) - {"200"}:
            schema = responses[status]["content"]["application/json"]["schema"]
            assert schema == {"$ref": "#/components/schemas/ErrorBody"}


def test_every_error_type_is_described(client: TestClient) -> None:
    responses = client.get("/openapi.json").json()["paths"]["/classify"]["post"]["responses"]
    described = {slug for answer in responses.values() for slug in re.findall(r"`(\w+)`:", answer["description"])}
    known = {kind.error_type for kind in (*ERROR_KINDS.values(), HTTP_KINDS[400], HTTP_KINDS[415])}
    assert described == known - {"client_closed"}


def test_the_page_needs_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/docs").text
    links = re.findall(r"""(?:src|href|url)\s*[=:]\s*["']([^"']+)["']""", page)
    assert {Path(link).suffix for link in links} >= {".js", ".css", ".png", ".json"}
    for link in links:
        assert link.startswith("/"), link
        answer = client.get(link)
        assert (answer.status_code, len(answer.content) > 1000) == (200, True), link
    assert "swagger" in client.get("/static-offline-docs/swagger-ui-bundle.js").text.lower()
    missing = client.get("/static-offline-docs/none.js")
    assert (missing.status_code, missing.json()["error_type"]) == (404, "not_found")


def test_docs_and_info(client: TestClient) -> None:
    assert client.get("/docs").status_code == 200
    info = client.get("/info").json()
    assert set(info["models"]) == {"tiny-classify", "tiny-qa"}
    assert info["models"]["tiny-classify"]["backends"]["fp32"]["dequantized"] is False
    int8 = info["models"]["tiny-classify"]["backends"]["int8"]
    assert (int8["kernel"], int8["kernel_choice"], int8["kernel_microseconds"]) == ("fbgemm", "given", {})
    assert (int8["weights_memory"], int8["weights_note"]) == ("private", "torch packs them for each process")
    assert (int8["bits"], int8["bits_note"]) == ("8-8-8", None)
    assert (info["models"]["tiny-classify"]["bits"], info["models"]["tiny-qa"]["bits"]) == ("8-8-8", "8-8-8")
    assert info["models"]["tiny-classify"]["backends"]["fp32"]["bits"] == "32-32-32"
    assert info["limits"]["payload_limit"] == 200_000
    assert info["state"] == "ready"
