"""Labels matched by meaning: what is clear is found, what is not is refused with both lists."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from q8core.errors import InputError
from q8core.tasks.labels import Classes, number_of, official_classes, own_classes, parse_labels

GENERIC = tuple(f"LABEL_{k}" for k in range(12))
NUMBERS = tuple(str(k) for k in range(12))


def found(
    data: Sequence[str], outputs: Sequence[str] = (), asked: Sequence[str] | None = None
) -> dict[str, int | None]:
    _, index = own_classes(data, outputs, asked)
    return {label: index(label) for label in data}


@given(st.permutations(["spam", "ham", "eggs", "toast"]), st.permutations(["Spam ", "HAM", "eggs", "Toast"]))
def test_names_mean_the_same_in_any_order_and_case(data: list[str], outputs: list[str]) -> None:
    classes, index = own_classes(data, outputs)
    assert classes.names == tuple(outputs)
    for label in data:
        place = index(label)
        assert place is not None
        assert outputs[place].strip().casefold() == label.casefold()


@given(st.integers(2, 40), st.randoms(use_true_random=False))
def test_integers_are_integers_and_generic_names_their_number(count: int, draw: random.Random) -> None:
    data = [str(k) for k in range(count)]
    draw.shuffle(data)
    order = list(range(count))
    draw.shuffle(order)
    for outputs in ([str(k) for k in order], [f"LABEL_{k}" for k in order]):
        classes, index = own_classes(data, outputs)
        assert [classes.names[index(label) or 0] for label in data] == data
        assert [order[index(label) or 0] for label in data] == [int(label) for label in data]


def test_without_a_head_numbers_stand_by_value_and_names_by_text() -> None:
    assert own_classes(NUMBERS)[0].names == NUMBERS
    assert own_classes(["-1", "10", "9"])[0].names == ("-1", "9", "10")
    assert own_classes(["b", "10", "9"])[0].names == ("10", "9", "b")
    assert own_classes(["b", "a"], asked=("b", "a"))[0].names == ("b", "a")


def test_a_number_is_the_same_however_it_is_written() -> None:
    """As pandas writes integers where a column has a gap."""
    assert found(["0.0", "1.0", "11.0"], GENERIC) == {"0.0": 0, "1.0": 1, "11.0": 11}
    assert found(["LABEL_1", "LABEL_0"], ("1", "0")) == {"LABEL_1": 0, "LABEL_0": 1}
    _, index = own_classes(["0", "1"])
    assert (index("1.0"), index("+1"), index("01"), index("2"), index("one")) == (1, 1, 1, None, None)
    assert [number_of(text) for text in ("1.5", "1e3", "LABEL_", "LABEL_x", "²", "", "1.0")] == [None] * 6 + [1]


def test_fewer_classes_than_outputs_are_found_too() -> None:
    classes, index = own_classes(["2", "11"], GENERIC)
    assert classes.names == NUMBERS
    assert (index("2"), index("11"), index("3")) == (2, 11, 3)
    assert found(["b"], ("a", "b", "c")) == {"b": 1}


@pytest.mark.parametrize(
    ("data", "outputs"),
    [
        (["good", "bad"], ("LABEL_0", "LABEL_1")),  # which is 0?
        (["0", "1"], ("negative", "positive")),
        (["1", "2"], ("LABEL_0", "LABEL_1")),  # from 1 on
        (["0", "1", "2"], ("LABEL_0", "LABEL_1")),
        (["negative", "neutral"], ("negative", "positive")),
        (["Pos", "pos"], ("neg", "pos")),  # two classes, one name
        (["a", "b"], ("A", "a", "B")),
        (["-1", "1"], ("0", "1")),
        (["0.5", "1"], ("0", "1")),
    ],
)
def test_what_is_not_clear_is_refused_with_both_lists(data: list[str], outputs: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match="--labels names the data's labels") as error:
        own_classes(data, outputs)
    assert f"answers {', '.join(outputs)}, the data has {', '.join(sorted(data))}" in str(error.value)


def test_the_option_settles_it() -> None:
    named, index = own_classes(["good", "bad"], ("LABEL_0", "LABEL_1"), ("good", "bad"))
    assert (named.names, index("good"), index("bad")) == (("good", "bad"), 0, 1)
    kept, index = own_classes(["0", "1"], ("negative", "positive"), ("1", "0"))  # a model's own names stay
    assert (kept.names, index("1"), index("0")) == (("negative", "positive"), 0, 1)
    assert kept.order_among(("negative", "positive")) == (0, 1)
    assert named.order_among(("LABEL_0", "LABEL_1")) == (0, 1)


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (("a", "b", "c"), "--labels has 3 names; the model has 2 outputs: x, y"),
        (("a", "c"), "the data has labels that --labels does not name: b; it names a, c"),
    ],
)
def test_an_option_that_does_not_fit_is_refused(asked: tuple[str, ...], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        own_classes(["a", "b"], ("x", "y"), asked)


def test_an_option_against_the_models_own_names_is_refused() -> None:
    with pytest.raises(InputError, match=r"--labels is b, a, but by their names the model's outputs are a, b"):
        own_classes(["a", "b"], ("a", "b"), ("b", "a"))
    with pytest.raises(InputError, match="by their names"):
        official_classes(("no", "yes"), ("no", "yes"), ("yes", "no"))


@pytest.mark.parametrize("text", ["a", "a,,b", "a,b,a", ""])
def test_the_options_text(text: str) -> None:
    assert parse_labels("b, a") == ("b", "a")
    with pytest.raises(InputError, match=f"--labels is {re.escape(repr(text))}"):
        parse_labels(text)


def test_a_number_in_two_ways_is_refused() -> None:
    with pytest.raises(InputError, match=r"one number in several ways: 1, 1\.0, 2"):
        own_classes(["1", "1.0", "2"])


def test_official_classes_have_the_numbers_of_their_data_set() -> None:
    classes = official_classes(("entailment", "neutral", "contradiction"))
    assert classes.order_among(GENERIC[:3]) == (0, 1, 2)
    assert classes.order_among(("LABEL_2", "LABEL_0", "LABEL_1")) == (1, 2, 0)
    assert classes.order_among(("CONTRADICTION", "entailment", "neutral")) == (1, 2, 0)
    assert classes.order_among(("2", "1", "0")) == (2, 1, 0)
    assert classes.order_among(("yes", "maybe", "no")) is None
    asked = official_classes(classes.names, ("yes", "maybe", "no"), ("entailment", "neutral", "contradiction"))
    assert asked.order_among(("yes", "maybe", "no")) == (0, 1, 2)
    other = official_classes(classes.names, GENERIC[:3], ("contradiction", "entailment", "neutral"))
    assert other.order_among(GENERIC[:3]) == (1, 2, 0)
    for asked_for in (("entailment", "neutral"), ("a", "b", "c")):
        with pytest.raises(InputError, match="it must name each of entailment, neutral, contradiction once"):
            official_classes(classes.names, GENERIC[:3], asked_for)
    with pytest.raises(InputError, match="have their own order"):
        official_classes(classes.names, (), classes.names)


def test_other_labels_have_no_order() -> None:
    assert Classes(("a", "b")).order_among(("a", "c")) is None
    assert Classes(("a", "b")).order_among(("a", "b", "c")) is None
    assert Classes(("Pos", "pos")).order_among(("Pos", "pos")) == (0, 1)  # by case alone
    assert Classes(("a", "b")).order_among(("LABEL_0", "LABEL_1")) is None


def test_the_text_column_taken_for_labels_is_named() -> None:
    with pytest.raises(InputError, match="is it the column of the labels"):
        own_classes(f"a long text {n}" for n in range(100_001))
