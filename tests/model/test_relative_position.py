"""Buckets of relative positions against transformers' own, which takes float32 logarithms."""

from __future__ import annotations

import pytest
import torch
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

from q8core.model.relative_position import bucket, buckets_by_distance


@pytest.mark.parametrize("buckets", [8, 32, 64])
def test_buckets_are_those_of_transformers(buckets: int) -> None:
    distances = torch.arange(-600, 601)
    expected = MPNetEncoder.relative_position_bucket(distances, num_buckets=buckets).tolist()
    assert [bucket(distance, buckets) for distance in distances.tolist()] == expected


def test_buckets_of_a_sequence_are_in_order_of_distance() -> None:
    assert buckets_by_distance(3, 32) == (2, 1, 0, 17, 18)
    assert buckets_by_distance(1, 32) == (0,)
