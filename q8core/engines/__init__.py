"""Engines: pack a checkpoint's tensors for this CPU and compute logits of token batches.

checkpoint -> ``load_engine`` -> ``self_test`` -> ``warmup`` -> ``infer(TokenBatch)`` -> logits
"""

from __future__ import annotations

from q8core.engines.load import build_engine, load_engine
from q8core.engines.packing import TokenBatch
from q8core.engines.protocol import Backend, Engine, EngineMemory, KernelName
from q8core.engines.self_test import SelfTestResult, self_test

__all__ = [
    "Backend",
    "Engine",
    "EngineMemory",
    "KernelName",
    "SelfTestResult",
    "TokenBatch",
    "build_engine",
    "load_engine",
    "self_test",
]
