"""The numbers of the shadow comparison and of `q8bert compare`: against SciPy, NumPy and plain sorting."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from q8core.tasks.agreement import wilson_interval
from service.queueing.batcher import LoadedModel
from service.second_opinion.agreement import Agreement, Case, WorstCases, summarize
from service.tasks.schemas import AnswerSpan, LabelScore
from service.tasks.verdict import Comparison, LabelVerdict, SpanVerdict, compare_verdicts

share = st.floats(0, 1, allow_subnormal=False)
comparisons = st.lists(st.builds(Comparison, st.none() | st.booleans(), share, st.none() | share), max_size=60)


def make_case(found: Comparison, number: int = 0) -> Case:
    return Case(f"request-{number}", "qa", 0, found, 0.5, {}, 5, 1, {"text": 9})


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_is_wilsons(counts: tuple[int, int]) -> None:
    hits, total = counts
    expected = binomtest(hits, total).proportion_ci(0.95, method="wilson")
    found = wilson_interval(hits, total)
    assert found == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert 0 <= found[0] <= hits / total <= found[1] <= 1


def test_nothing_seen_says_nothing() -> None:
    assert wilson_interval(0, 0) == (0, 1)
    empty = summarize([])
    assert empty == {"compared": 0, "agreed": 0, "agreement": None, "agreement_ci95": None, "abs_diff": None}


@given(comparisons.filter(bool))
def test_the_summary_is_that_of_numpy(found: list[Comparison]) -> None:
    summary = summarize(found)
    judged = [c.agree for c in found if c.agree is not None]
    assert (summary["compared"], summary["agreed"]) == (len(found), sum(judged) if judged else None)
    assert summary["agreement"] == (pytest.approx(np.mean(judged)) if judged else None)
    assert (summary["agreement_ci95"] is None) == (not judged)
    diffs = [c.abs_diff for c in found]
    quantiles = {f"p{q}": np.percentile(diffs, q) for q in (50, 90, 99)}
    assert summary["abs_diff"] == pytest.approx({"mean": np.mean(diffs), "max": max(diffs), **quantiles})
    spans = [c.span_f1 for c in found if c.span_f1 is not None]
    if spans:
        low = {f"p{q}": np.percentile(spans, q) for q in (1, 10)}
        assert summary["span_f1"] == pytest.approx({"mean": np.mean(spans), "min": min(spans), **low})
    assert ("span_f1" in summary) == bool(spans)


@given(comparisons)
def test_the_order_of_arrival_does_not_matter(found: list[Comparison]) -> None:
    assert summarize(found) == summarize(found[::-1])


@given(comparisons, st.integers(1, 5))
def test_the_worst_are_kept(found: list[Comparison], size: int) -> None:
    worst = WorstCases(size, window=None)
    cases = [make_case(one, number) for number, one in enumerate(found)]
    for case in cases:
        worst.add(case)
    expected = sorted(cases, key=lambda case: case.badness(), reverse=True)[:size]
    assert [entry["request_id"] for entry in worst.describe()] == [case.request_id for case in expected]


@given(comparisons, st.integers(1, 5), st.integers(1, 10))
def test_old_cases_leave(found: list[Comparison], size: int, window: int) -> None:
    worst = WorstCases(size, window)
    for number, one in enumerate(found):
        worst.add(make_case(one, number))
        kept = [int(entry["request_id"].removeprefix("request-")) for entry in worst.describe()]
        assert all(number - window < place <= number for place in kept)
        if len(kept) < size and number < window:
            assert len(kept) == number + 1


def test_a_disagreement_is_worse_than_any_difference_and_far_spans_worse_than_near_ones() -> None:
    ranked = [
        Comparison(False, 0.1, 0.0),
        Comparison(False, 0.9, 0.5),
        Comparison(False, 0.1, 0.5),
        Comparison(True, 0.9, 1.0),
        Comparison(True, 0.1, 1.0),
    ]
    keys = [make_case(one).badness() for one in ranked]
    assert keys == sorted(keys, reverse=True)


def test_the_window_rolls_and_models_are_apart() -> None:
    agreement = Agreement(window=3)
    one, other = LoadedModel("classify", "one", 0), LoadedModel("classify", "other", 1)
    agreement.begin(one, "abc")
    agreement.begin(other, "def")
    for number, agree in enumerate([False, False, True, True, True]):
        agreement.record(one, [make_case(Comparison(agree, 0.1), number)])
    found = agreement.describe()
    assert {name: (m["task"], m["revision"]) for name, m in found.items()} == {
        "one": ("classify", "abc"),
        "other": ("classify", "def"),
    }
    assert (found["one"]["compared"], found["one"]["agreement"]) == (3, 1.0)
    assert (found["other"]["compared"], found["other"]["since"], found["other"]["worst"]) == (0, None, [])
    assert {entry["request_id"] for entry in found["one"]["worst"]} == {"request-2", "request-3", "request-4"}


def test_a_names_next_checkpoint_begins_with_nothing() -> None:
    agreement = Agreement()
    old, new = LoadedModel("qa", "one", 0), LoadedModel("qa", "one", 1)
    agreement.begin(old, "abc")
    agreement.record(old, [make_case(Comparison(False, 0.1))])
    agreement.end(old)
    agreement.begin(new, "def")
    assert (agreement.knows(old), agreement.knows(new)) == (False, True)
    assert (agreement.describe()["one"]["revision"], agreement.describe()["one"]["compared"]) == ("def", 0)
    with pytest.raises(KeyError):
        agreement.record(old, [make_case(Comparison(False, 0.1))])
    agreement.end(new)
    assert agreement.describe() == {}


def labels(**scores: float) -> LabelVerdict:
    ranked = sorted(scores.items(), key=lambda entry: -entry[1])
    return LabelVerdict(tuple(LabelScore(label=label, score=score) for label, score in ranked))


def spans(*found: tuple[str, float, int]) -> SpanVerdict:
    return SpanVerdict(tuple(AnswerSpan(answer=a, score=s, start=n, end=n + len(a)) for a, s, n in found))


def test_labels_agree_where_the_first_is_the_same() -> None:
    fp32, int8 = labels(a=0.6, b=0.3, c=0.1), labels(b=0.5, a=0.35, c=0.15)
    assert compare_verdicts(fp32, int8) == Comparison(False, pytest.approx(0.25))  # type: ignore[arg-type]
    assert compare_verdicts(fp32, labels(a=0.9, b=0.1, c=0)) == Comparison(True, pytest.approx(0.3))  # type: ignore[arg-type]
    assert (fp32.margin, labels(only=3.0).margin) == (pytest.approx(0.3), 1.0)


def test_numbers_only_differ() -> None:
    found = compare_verdicts(labels(LABEL_0=4.9), labels(LABEL_0=3.9))
    assert found == Comparison(None, pytest.approx(1.0))  # type: ignore[arg-type]
    assert make_case(found).badness() < make_case(Comparison(None, 1.1)).badness()
    assert make_case(Comparison(None, 9.0)).badness() < make_case(Comparison(False, 0.1)).badness()


def test_spans_agree_at_the_same_place_only() -> None:
    fp32 = spans(("Ada Lovelace", 0.6, 3), ("Ada", 0.3, 3))
    assert compare_verdicts(fp32, spans(("Ada", 0.5, 3))) == Comparison(False, pytest.approx(0.1), pytest.approx(2 / 3))  # type: ignore[arg-type]
    assert compare_verdicts(fp32, spans(("Ada Lovelace", 0.5, 30))).agree is False
    assert compare_verdicts(fp32, fp32) == Comparison(True, 0, 1)
    assert fp32.margin == pytest.approx(0.3)
