"""Engines: a checkpoint's tensors, packed for this CPU, turning token batches into logits.

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
