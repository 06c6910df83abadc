"""Recipes of single schemes: what a table changes, where training starts, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from q8core.errors import InputError
from q8core.quant import find_scheme
from q8core.training.recipe import PACKAGED, load_recipe

START = "[fp32]\n[qat]\nepochs = 1.0\nbatch_size = 8\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder for recipes, with schemes of a user's own beside it."""
    for name, bits in (("four", 4), ("two", 2)):
        file = tmp_path / "schemes" / f"{name}.toml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(f'base = "q8bert"\nlinears.weight = {{ bits = {bits} }}\n')
    (tmp_path / "recipes").mkdir()
    return tmp_path / "recipes"


def load(folder: Path, text: str, start: str = f"teacher = true\n{START}"):
    (folder / "rte.toml").write_text(start + text)
    return load_recipe("rte", folder)


def test_a_table_changes_the_hyperparameters_of_one_scheme(folder: Path) -> None:
    recipe = load(folder, "[schemes.q8bert-paper]\nepochs = 3\nlearning_rate = 1e-3\n")
    own, other = recipe.of_scheme("q8bert-paper"), recipe.of_scheme("q8bert")
    assert own.config == recipe.qat.changed(epochs=3.0, learning_rate=1e-3)
    assert own.config.batch_size == 8
    assert type(own.config) is type(recipe.qat)
    assert (own.teacher, own.after) == (True, None)
    assert (other.config, other.teacher, other.after, other.table) == (recipe.qat, True, None, "")
    assert own.table == f"{folder / 'rte.toml'}, [schemes.q8bert-paper]"


def test_teacher_and_after_stand_beside_the_hyperparameters(folder: Path) -> None:
    text = '[schemes."../schemes/two.toml"]\nafter = "../schemes/four.toml"\nteacher = false\n'
    recipe = load(folder, f"{text}[schemes.q8bert]\n")
    own = recipe.of_scheme("two")
    assert own.after is not None
    assert (find_scheme(own.after).name, own.teacher) == ("four", False)
    assert recipe.of_scheme("q8bert").teacher
    assert not load(folder, "[schemes.q8bert]\n", START).of_scheme("q8bert").teacher


def test_a_stage_has_a_name_of_its_own_and_the_scheme_or_float(folder: Path) -> None:
    text = (
        '[schemes.small]\nscheme = "fp32"\nwidth = 0.5\n[schemes.first]\nscheme = "../schemes/two.toml"\n'
        'after = "small"\n[schemes.q8bert]\nafter = "first"\n'
    )
    recipe = load(folder, text)
    assert (recipe.schemes["small"].scheme, recipe.schemes["small"].config.width) == ("fp32", 0.5)
    first = recipe.schemes["first"]
    assert first.scheme is not None
    assert (find_scheme(first.scheme).name, first.after) == ("two", "small")
    assert (recipe.of_scheme("q8bert").after, recipe.of_scheme("q8bert").scheme) == ("first", None)
    assert recipe.of_scheme("two").table == ""  # the stage's table is not the scheme's


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "[schemes.q8bert]\nepoch = 1\n",
            r"rte.toml, \[schemes.q8bert\]: epoch is unknown; .*evals.*teacher, scheme, after",
        ),
        ("[schemes.q8bert]\nepochs = '1'\n", r"\[schemes.q8bert\]: epochs is '1'; allowed: a number"),
        ("[schemes.q8bert]\nlearning_rate = 2\n", r"\[schemes.q8bert\]: learning_rate is 2.0, out of its range"),
        ("[schemes.q8bert]\nteacher = 'fp32'\n", r"teacher is 'fp32'; allowed: true or false"),
        ("[schemes]\nq8bert = 1\n", r"rte.toml: schemes.q8bert is 1; allowed: an object"),
        ("[schemes.q9bert]\n", r"rte.toml, \[schemes.q9bert\]: no scheme 'q9bert'; allowed are q8bert"),
        ("[schemes.q8bert]\nafter = 'q9bert'\n", r"rte.toml, \[schemes.q8bert\]: after: no scheme 'q9bert'"),
        ("[schemes.'none.toml']\n", r"rte.toml, \[schemes.none.toml\]: .*none.toml"),
        ("[schemes.dynamic]\n", r"\[schemes.dynamic\]: scheme 'dynamic' needs no training"),
        ("[schemes.q8bert]\n[schemes.'../schemes/q8bert.toml']\n", r"'q8bert' has a table already"),
        (
            "[schemes.ternary]\nscheme = 'binary'\n",
            r"a table with `scheme` needs a name of its own; 'ternary' is a sch",
        ),
        ("[schemes.fp32]\nscheme = 'binary'\n", r"a table with `scheme` needs a name of its own; 'fp32' is a scheme's"),
        ("[schemes.one]\nscheme = 'q9bert'\n", r"rte.toml, \[schemes.one\]: scheme: no scheme 'q9bert'"),
        ("[schemes.one]\nscheme = 'fp32'\nafter = 'one'\n", r"in a circle: one after one"),
        ("[schemes.q8bert]\nafter = 'q8bert'\n", r"rte.toml, .* in a circle: q8bert after q8bert"),
        (
            "[schemes.q8bert]\nafter = 'q8bert-paper'\n[schemes.q8bert-paper]\nafter = 'q8bert-smooth'\n"
            "[schemes.q8bert-smooth]\nafter = 'q8bert'\n",
            r"rte.toml, .*: q8bert after q8bert-paper after q8bert-smooth after q8bert$",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_file(folder: Path, text: str, words: str) -> None:
    (folder.parent / "schemes" / "q8bert.toml").write_text('base = "q8bert"\n')
    with pytest.raises(InputError, match=words):
        load(folder, text)


@pytest.mark.parametrize("file", sorted(PACKAGED.glob("*.toml")), ids=lambda file: file.stem)
def test_the_packaged_tables_can_be_read(file: Path) -> None:
    for own in load_recipe(file.stem).schemes.values():
        assert own.config.epochs > 0
