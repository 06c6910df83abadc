from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from q8core.errors import InputError
from service.cli import serve
from service.settings import Settings, load_settings, unknown_variables


def test_every_setting_is_an_option_and_the_other_way_round() -> None:
    assert set(inspect.signature(serve).parameters) - {"dry_run"} == set(Settings.model_fields)


def test_options_win_over_the_environment_and_that_over_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings({}).port == 8000
    monkeypatch.setenv("Q8BERT_PORT", "9001")
    assert load_settings({"port": None}).port == 9001
    assert load_settings({"port": 9002}).port == 9002


def test_lists_in_the_environment_are_comma_separated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("Q8BERT_BACKENDS", "int8, fp32,int8")
    monkeypatch.setenv("Q8BERT_CHECKPOINT", "/models/a,/models/b")
    settings = load_settings({})
    assert settings.backends == ("int8", "fp32")
    assert settings.checkpoint == (Path("/models/a"), Path("/models/b"))


def test_empty_variables_count_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("Q8BERT_THREADS", "")
    monkeypatch.setenv("Q8BERT_CHECKPOINT", "")
    assert (load_settings({}).threads, load_settings({}).checkpoint) == (None, ())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"port": 70000}, ["--port", "70000"]),
        ({"backends": "int4"}, ["--backends", "int4", "fp32"]),
        ({"backends": ""}, ["--backends"]),
        ({"backends": "fp32", "default_backend": "int8"}, ["default_backend int8", "fp32"]),
        ({"kernel": "mkl"}, ["--kernel", "mkl", "onednn"]),
        ({"request_timeout_s": float("inf")}, ["--request-timeout-s"]),
        ({"model": ["reviews"]}, ["--model", "'reviews' is not NAME=PATH"]),
        ({"model": ["a/b=path"]}, ["--model", "NAME=PATH"]),
        ({"model": ["a="]}, ["--model", "NAME=PATH"]),
        ({"request_timeout_s": 0}, ["--request-timeout-s", "0"]),
        ({"watch_s": -1}, ["--watch-s", "-1"]),
        ({"watch_s": 2, "workers": 2}, ["watch_s is 2", "workers is 2", "one worker"]),
    ],
)
def test_wrong_values_are_named_with_what_is_allowed(options: dict[str, object], words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        load_settings(options)
    for word in words:
        assert word in str(error.value)


def test_wrong_variable_is_named_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    # what Kubernetes injects for a Service that is called q8bert
    monkeypatch.setenv("Q8BERT_PORT", "tcp://10.0.0.1:8000")
    with pytest.raises(InputError, match=r"Q8BERT_PORT is 'tcp://10\.0\.0\.1:8000'"):
        load_settings({})


def test_unknown_variables_are_found() -> None:
    known = {"Q8BERT_PORT": "1", "Q8BERT_MAX_ISA": "avx2", "Q8BERT_CACHE": "x", "PATH": ""}
    assert unknown_variables({"Q8BERT_PROT": "1", **known}) == ["Q8BERT_PROT"]


@pytest.mark.parametrize(("backends", "expected"), [(("fp32", "int8"), "int8"), (("fp32",), "fp32")])
def test_default_backend_is_int8_where_loaded(backends: tuple[str, ...], expected: str) -> None:
    assert Settings(backends=backends).chosen_default == expected  # type: ignore[arg-type]


def test_named_models_keep_their_order_and_equals_signs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("Q8BERT_MODEL", "b=/models/x=1, a=relative")
    assert load_settings({}).named_models == (("b", Path("/models/x=1")), ("a", Path("relative")))
