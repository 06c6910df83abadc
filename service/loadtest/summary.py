"""From samples to the report: percentiles by outcome, throughput, refusals, and the generator's own lateness."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from service.loadtest.load import OK, Load, Record, Sample

PERCENTILES = (50.0, 90.0, 99.0, 99.9)


@dataclass(frozen=True)
class Spread:
    """Percentiles in milliseconds; None for a percentile with no value above it."""

    count: int
    p50: float | None
    p90: float | None
    p99: float | None
    p99_9: float | None
    max: float | None

    @classmethod
    def of(cls, seconds: Iterable[float]) -> Spread:
        """Return the percentiles of durations in seconds."""
        values = sorted(seconds)
        p50, p90, p99, p99_9 = (_ms(percentile(values, p)) for p in PERCENTILES)
        return cls(len(values), p50, p90, p99, p99_9, _ms(values[-1] if values else None))


@dataclass(frozen=True)
class RetryAfter:
    """The Retry-After headers seen, in seconds."""

    count: int
    min: float
    median: float
    max: float


@dataclass(frozen=True)
class Second:
    """The requests that should have been sent in one second of the load, warm-up included."""

    second: int
    asked: int
    answered: int
    other: int
    p50_ms: float | None
    max_ms: float | None


@dataclass(frozen=True)
class Summary:
    """The result of a load test; warm-up is only in ``per_second``.

    Args:
        requests: number of measured requests.
        asked_per_s: the rate at which they should have been sent.
        answered_per_s: answers with status 200 within the measured time, per second.
        tokens_per_s: tokens of these answers per second.
        latency: by task and outcome, from the intended time to the last byte or to the time-out.
        from_sending: latency of status 200 from the actual sending.
        outside_inference: the same, without the inference time that the service reports.
        retry_after: the Retry-After headers of refusals.
        lateness: from intended to actual sending: the generator's own, and waiting for a free connection.
        generator_cpus: CPUs that the generator used.
        per_second: the course of the test.
    """

    requests: int
    asked_per_s: float
    answered_per_s: float
    tokens_per_s: float
    latency: dict[str, dict[str, Spread]]
    from_sending: Spread
    outside_inference: Spread
    retry_after: RetryAfter | None
    lateness: Spread
    generator_cpus: float
    per_second: list[Second]


def percentile(values: Sequence[float], p: float) -> float | None:
    """Return the smallest of the sorted values that at least ``p`` percent do not exceed (nearest rank).

    None if there are too few values for one to lie above it.
    """
    if p > 50 and len(values) * (100 - p) / 100 < 1 - 1e-9:
        return None
    return values[max(0, math.ceil(len(values) * p / 100 - 1e-9) - 1)] if values else None


def summarize(record: Record, load: Load) -> Summary:
    """Summarize a load test."""
    end = record.seconds
    counted = [sample for sample in record.samples if sample.intended >= load.warmup_s]
    seconds = max(end - load.warmup_s, 1e-9)
    good = [sample for sample in counted if sample.outcome == OK]
    in_time = [s for s in record.samples if s.outcome == OK and load.warmup_s <= s.finished < end]
    return Summary(
        requests=len(counted),
        asked_per_s=round(len(counted) / seconds, 3),
        answered_per_s=round(len(in_time) / seconds, 3),
        tokens_per_s=round(sum(sample.tokens for sample in in_time) / seconds, 3),
        latency=_latency(counted),
        from_sending=Spread.of(s.finished - s.sent for s in good),
        outside_inference=Spread.of(s.finished - s.sent - s.inference_s for s in good if s.inference_s is not None),
        retry_after=_retry_after([s.retry_after_s for s in counted if s.retry_after_s is not None]),
        lateness=Spread.of(sample.sent - sample.intended for sample in counted),
        generator_cpus=round(record.cpu_seconds / max(record.seconds, 1e-9), 3),
        per_second=_per_second(record.samples),
    )


def _latency(samples: Sequence[Sample]) -> dict[str, dict[str, Spread]]:
    counts = Counter((sample.task, sample.outcome) for sample in samples)
    found: dict[str, dict[str, Spread]] = defaultdict(dict)
    for task, outcome in sorted(counts):
        own = (s.finished - s.intended for s in samples if (s.task, s.outcome) == (task, outcome))
        found[task][outcome] = Spread.of(own)
    return dict(found)


def _retry_after(values: list[float]) -> RetryAfter | None:
    values.sort()
    return RetryAfter(len(values), values[0], values[len(values) // 2], values[-1]) if values else None


def _per_second(samples: Sequence[Sample]) -> list[Second]:
    groups: dict[int, list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[int(sample.intended)].append(sample)
    return [_second(number, groups.get(number, [])) for number in range(max(groups, default=-1) + 1)]


def _second(number: int, samples: Sequence[Sample]) -> Second:
    values = sorted(sample.finished - sample.intended for sample in samples if sample.outcome == OK)
    return Second(
        number,
        len(samples),
        len(values),
        len(samples) - len(values),
        _ms(percentile(values, 50)),
        _ms(values[-1] if values else None),
    )


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)
