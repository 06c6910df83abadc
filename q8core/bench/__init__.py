"""Measuring speed and memory of the engines against stock transformers, on random weights or a checkpoint.

``models`` (shapes), ``workloads`` (lengths), ``threads`` -> ``folder`` (random weights) -> ``contenders``, ``floor``
-> ``speed`` (``timing``, ``comparison``) | ``resident`` (``first_answer``) -> ``tables``, ``plot`` (``panels``)
"""
