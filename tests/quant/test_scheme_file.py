from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from q8core.errors import SchemeError
from q8core.model.sites import TABLES
from q8core.quant import PRESETS, Quantizer, SiteScheme, find_scheme, preset
from q8core.quant.quantizer import PER_CHANNEL, STATIC
from q8core.quant.schemes.scheme import LINEAR_SLOTS
from tests.quant.test_migrate import WRITTEN, written

CHANGES = """
base = "q8bert"
ema_decay = 0.99
linears.weight = { granularity = "tensor" }
slots.head_output.start_step = 200
slots.ffn_in.weight = { bits = 4 }
slots.head_dense = "float"
slots.query.output = "none"
overrides."layers.0.*" = "float"
overrides."layers.0.key".weight.bits = 3
overrides."layers.1.key".output = "none"
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
        slots[slot] = replace(slots[slot], weight=Quantizer())
    slots["head_output"] = replace(slots["head_output"], start_step=200)
    slots["ffn_in"] = replace(slots["ffn_in"], weight=Quantizer(bits=4))
    slots["head_dense"] = SiteScheme()
    slots["query"] = replace(slots["query"], output=None)
    overrides = {
        "layers.0.*": "float",
        "layers.0.key": {"weight": {"bits": 3}},
        "layers.1.key": {"output": "none"},
    }
    assert found == replace(base, name="mine", ema_decay=0.99, slots=slots, overrides=overrides)
    assert list(found.overrides) == list(overrides)  # later ones win
    assert found.slots["word_embeddings"].weight == PER_CHANNEL


def test_tables_are_a_group_too(tmp_path: Path) -> None:
    text = '{"base": "static", "tables": {"weight": {"bits": 4}}, "slots": {"token_type_embeddings": "float"}}'
    found = find_scheme(write(tmp_path, text, "tables.json"))
    assert {slot for slot, s in found.slots.items() if s.weight and s.weight.bits == 4} == set(TABLES) - {
        "token_type_embeddings"
    }
    assert found.name == "tables"


def test_what_was_float_starts_from_the_usual_quantizers(tmp_path: Path) -> None:
    text = 'base = "dynamic"\nlinears = "float"\nslots.ffn_in = { weight = {}, input = {} }'
    found = find_scheme(write(tmp_path, text))
    assert {slot for slot in LINEAR_SLOTS if found.slots[slot].quantizes} == {"ffn_in"}
    assert found.slots["ffn_in"] == SiteScheme(PER_CHANNEL, STATIC)


@pytest.mark.parametrize("name", WRITTEN)
def test_a_whole_scheme_of_an_earlier_release_is_read(tmp_path: Path, name: str) -> None:
    renamed = {
        **written(name),
        "name": "own",
    }  # the presets without training are others since their inputs are smoothed
    assert find_scheme(write(tmp_path, json.dumps(renamed), "old.json")) == replace(
        preset(name).smoothed(0), name="own"
    )
    old = written(name, {"classifier": {"enabled": False}})
    with pytest.raises(SchemeError, match=r"old\.json: .*can be read with its model only; write it anew"):
        find_scheme(write(tmp_path, json.dumps(old), "old.json"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('base = "q8brt"', "base must be one of q8bert, .*; found 'q8brt'"),
        ('base = "q8bert"\nema_decai = 0.9', "ema_decai is unknown; allowed here: name, slots, ema_decay"),
        ('base = "q8bert"\nema_decay = 2', "ema_decay must be at least 0 and less than 1, not 2"),
        ('base = "q8bert"\nema_decay = "0.9"', "ema_decay is '0.9'; allowed: a number"),
        ('base = "q8bert"\nlinears = { wieght = {} }', "linears: wieght is unknown; allowed here: weight, input"),
        ('base = "q8bert"\nlinears.weight.bitz = 4', "linears: weight.bitz is unknown; allowed here: bits, grid"),
        ('base = "q8bert"\nlinears.weight = { granularity = "row" }', "weight.granularity is 'row'"),
        ('base = "q8bert"\nlinears.weight = "per_tensor"', "linears, weight must be a table .*, not 'per_tensor'"),
        ('base = "q8bert"\nlinears.weight.bits = 0', "linears: bits is 0; allowed: 1 to 8"),
        ('base = "q8bert"\nlinears.input.bits = 5', "input.bits of one scale a tensor is 5; allowed: 4, 8"),
        ('base = "q8bert"\ntables = 3', "tables must be a table of keys and values, not 3"),
        ('base = "q8bert"\ntables.input = {}', "word_embeddings: only linears have an input"),
        ('base = "q8bert"\nembeddings.weight.bits = 4', "embeddings is unknown; allowed here: name, slots"),
        ('base = "q8bert"\nslots.querry = { start_step = 1 }', "unknown slot 'querry'; allowed are word_embeddings"),
        ('base = "q8bert"\nslots.pooler = { start_step = 1 }', "unknown slot 'pooler'; allowed are word_embeddings"),
        ('base = "q8bert"\nslots.query = 3', "slot query must be a table"),
        ('base = "q8bert"\nslots.query = "none"', "slot query must be a table of keys and values, not 'none'"),
        ('base = "q8bert"\nslots.query.start_step = -1', "start_step is -1"),
        ('base = "q8bert"\nslots.value.output = {}', "the output of value is quantized"),
        ('base = "q8bert"\nslots = 3', "slots must be a table of keys and values, not 3"),
        ('base = "q8bert"\noverrides = 3', "overrides must be a table of keys and values, not 3"),
        ('base = "q8bert"\noverrides."*" = "none"', "'none'"),
        ('base = "q8bert"\nversion = 1', "version is 1; this release reads 2"),
        ('base = "q8bert"\nname = "static"\nema_decay = 0.5', "'static' is the name of a preset"),
        ('name = "mine"', "slots must be a table"),
        ('name = "mine"\nversion = 2', "slots is missing"),
        ('name = "mine"\nversion = 3', "version is 3"),
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
