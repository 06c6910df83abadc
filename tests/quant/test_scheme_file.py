from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from q8core.errors import SchemeError
from q8core.quant import EMBEDDING_SLOTS, LINEAR_SLOTS, PRESETS, find_scheme, preset

CHANGES = """
base = "q8bert"
ema_decay = 0.99
linears = { weight = "per_tensor" }
slots.head = { start_step = 200 }
overrides."bert.encoder.layer.0.*" = { enabled = false }
"""


def write(folder: Path, text: str, name: str = "mine.toml") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


@pytest.mark.parametrize("name", list(PRESETS))
def test_presets_are_found_and_read_back(tmp_path: Path, name: str) -> None:
    assert find_scheme(name) == preset(name)
    assert find_scheme(write(tmp_path, json.dumps(preset(name).to_dict()), "whole.json")) == preset(name)
    assert find_scheme(write(tmp_path, f'base = "{name}"\nname = "{name}"')) == preset(name)


def test_a_file_changes_what_it_names_and_nothing_else(tmp_path: Path) -> None:
    found, base = find_scheme(write(tmp_path, CHANGES)), preset("q8bert")
    slots = dict(base.slots)
    for slot in LINEAR_SLOTS:
        slots[slot] = replace(slots[slot], weight="per_tensor")
    slots["head"] = replace(slots["head"], start_step=200)
    overrides = {"bert.encoder.layer.0.*": {"enabled": False}}
    assert found == replace(base, name="mine", ema_decay=0.99, slots=slots, overrides=overrides)
    assert found.slots["word_embeddings"].weight == "per_channel"


def test_embeddings_are_a_group_too(tmp_path: Path) -> None:
    found = find_scheme(write(tmp_path, '{"base": "static", "embeddings": {"weight": "per_tensor"}}', "tables.json"))
    assert {slot for slot, s in found.slots.items() if s.weight == "per_tensor"} == set(EMBEDDING_SLOTS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('base = "q8brt"', "base must be one of q8bert, .*; found 'q8brt'"),
        ('base = "q8bert"\nema_decai = 0.9', "unknown scheme key 'ema_decai'"),
        ('base = "q8bert"\nema_decay = 2', "ema_decay must be at least 0 and less than 1, not 2"),
        ('base = "q8bert"\nlinears = { wieght = "per_tensor" }', "unknown slot 'query' key 'wieght'"),
        ('base = "q8bert"\nlinears = { weight = "per_row" }', "weight must be one of per_tensor, per_channel"),
        ('base = "q8bert"\nslots.querry = { start_step = 1 }', "unknown slot 'querry'; allowed are word_embeddings"),
        ('base = "q8bert"\nslots.query = 3', "slot 'query' must be a table"),
        ('base = "q8bert"\nname = "static"\nema_decay = 0.5', "'static' is the name of a preset"),
        ('name = "mine"', "missing scheme key 'slots'"),
        ("base = ", "is not valid TOML: Invalid value"),
        ('base = ["q8bert"]', r"base must be one of q8bert, .*; found \['q8bert'\]"),
        ("\xff", "line 1: not UTF-8 text"),
    ],
)
def test_what_is_wrong_is_named_with_its_file(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "wrong.toml"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(SchemeError, match=message) as error:
        find_scheme(str(file))
    assert str(file) in str(error.value)


def test_neither_preset_nor_file(tmp_path: Path) -> None:
    with pytest.raises(SchemeError, match=r"no scheme .q9.; allowed are q8bert, .* or a file that ends in \.toml"):
        find_scheme("q9")
    with pytest.raises(SchemeError, match="cannot be read"):
        find_scheme(str(tmp_path / "missing.json"))
    with pytest.raises(SchemeError, match="must hold a table"):
        find_scheme(write(tmp_path, "[1]", "list.json"))
