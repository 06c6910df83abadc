"""Files for `serve`, `compare` and `loadtest`, as editors on other systems save them, or damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from q8core.errors import InputError
from service.loadtest.bodies import load_asks
from service.loadtest.run import _read_key
from service.loadtest.target import parse_target
from service.operations.keys import KeyRing, load_keys
from service.second_opinion.cascade import Calibration, Cascade
from service.second_opinion.replay import Compared, read_requests
from service.settings import Settings
from tests.service.conftest import open_registry

Readers = dict[str, tuple[str, Callable[[Path], Any]]]
KEY = "a-key-of-the-tests"
BODIES = '{"inputs": "good"}\n\n{"inputs": "bad"}\n'


def bodies(file: Path) -> list[object]:
    asks = load_asks(parse_target("http://127.0.0.1:9", allow_remote=False), ["classify"], file, None, None)
    return [json.loads(ask.payload.partition(b"\r\n\r\n")[2]) for ask in asks]


@pytest.fixture(scope="module")
def readers(classify_folder: Path) -> Readers:
    """Kind of file -> content, and what reads it into something that can be compared."""
    registry = open_registry(classify_folder)
    (model,) = registry.models.values()
    entry = Calibration(model.name, model.revision, "classify", 0.25, 0.99, 10, 0.9, 0.99, (0.9, 1.0), 0.1)
    cascade = json.dumps({"format_version": 1, "calibrations": [asdict(entry)]}, indent=1)

    def requests(file: Path) -> list[object]:
        found = read_requests(file, {"classify": Compared.backends_of(model)})
        return [(one.name, [item.input_ids for item in one.tested.items]) for one in found]

    def key_file(file: Path) -> KeyRing:
        return load_keys(Settings(api_key_file=file)).api

    return {
        "compare --file": (BODIES, requests),
        "loadtest --file": (BODIES, bodies),
        "loadtest --api-key-file": (f"{KEY}\n", _read_key),
        "serve --api-key-file": (f"# ours\n{KEY}\n", lambda file: vars(key_file(file))),
        "serve --cascade": (cascade, lambda file: Cascade.read(file, registry).calibrations),
    }


KINDS = ["compare --file", "loadtest --file", "loadtest --api-key-file", "serve --api-key-file", "serve --cascade"]


@pytest.mark.parametrize("kind", KINDS)
def test_marks_and_ends_of_lines_do_not_matter(readers: Readers, kind: str, tmp_path: Path) -> None:
    text, read = readers[kind]
    file = tmp_path / "file"
    file.write_bytes(text.encode())
    expected = read(file)
    for changed in ("\ufeff" + text, "\ufeff" + text.replace("\n", "\r\n"), text.replace("\n", "\r")):
        file.write_bytes(changed.encode())
        assert read(file) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_text_is_named_with_its_line(readers: Readers, kind: str, tmp_path: Path) -> None:
    _, read = readers[kind]
    for content, words in (
        (None, " cannot be read: No such file or directory"),
        (b"a\r\nb\rc\n\xff", ", line 4: not UTF-8 text (byte 0xff); save it as UTF-8"),
        (b"a\n\0", ", line 2: a NUL character, which is no text; save it as UTF-8"),
    ):
        if content is not None:
            (tmp_path / "file").write_bytes(content)
        with pytest.raises(InputError) as caught:
            read(tmp_path / "file")
        assert str(caught.value) == f"{tmp_path / 'file'}{words}"


@pytest.mark.parametrize("kind", ["compare --file", "loadtest --file"])
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "not valid JSON: Expecting property name enclosed in double quotes"),
        ('{"inputs": ' + "[" * 50_000, "nested too deeply"),
        ('{"inputs": ' + "9" * 5000 + "}", "a number has too many digits"),
    ],
)
def test_a_line_that_cannot_be_parsed_is_named(
    readers: Readers, kind: str, line: str, words: str, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text(f'{{"inputs": "good"}}\n\n{line}\n')
    with pytest.raises(InputError) as caught:
        readers[kind][1](file)
    assert str(caught.value) == f"{file}, line 3: {words}"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"threshold": True}, "calibrations[0].threshold is true; allowed: a number"),
        (
            {"threshold": 10**400},
            f"calibrations[0].threshold is 1{'0' * 37}...{'0' * 39}; allowed: a finite number",
        ),
        ({"threshold": -0.5}, "calibrations[0].threshold is -0.5; allowed: at least 0"),
        ({"revision": 3}, "calibrations[0].revision is 3; allowed: a text"),
        ({"revision": ["a"]}, "calibrations[0].revision is ['a']; allowed: a text"),
        ({"inputs": 1.5}, "calibrations[0].inputs is 1.5; allowed: a whole number"),
        ({"agreement_ci95": [0.5, "1"]}, "calibrations[0].agreement_ci95[1] is '1'; allowed: a number"),
        (
            {"treshold": 1},
            f"calibrations[0].treshold is unknown; allowed here: {', '.join(Calibration.__dataclass_fields__)}",
        ),
    ],
)
def test_a_wrong_value_of_a_cascade_is_named_with_its_place(
    readers: Readers, change: dict[str, object], words: str, tmp_path: Path
) -> None:
    text, read = readers["serve --cascade"]
    content = json.loads(text)
    content["calibrations"][0] |= change
    file = tmp_path / "cascade.json"
    file.write_text(json.dumps(content))
    with pytest.raises(InputError) as caught:
        read(file)
    assert str(caught.value) == f"{file} is not a file of `q8bert compare --cascade`: {words}"
    file.write_text('{"format_version": 1, "calibrations": ' + "[" * 500 + "]" * 500 + "}")
    with pytest.raises(InputError, match=r"is not a file of .*recursion limit exceeded"):
        read(file)
