"""A recipe that trains a tiny model in a second."""

from __future__ import annotations

RECIPE = """
seeds = {seeds}
[fp32]
epochs = 3.0
batch_size = 8
learning_rate = 1e-3
precision = "fp32"
evals = 1
[qat]
epochs = 1.0
batch_size = 8
learning_rate = 1e-4
precision = "fp32"
evals = 1
"""
