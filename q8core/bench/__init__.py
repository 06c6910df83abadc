"""Measuring speed and memory of the engines against stock transformers, on random weights or a checkpoint.

``models`` (shapes, random weights) -> ``contenders`` -> ``timing`` | ``resident`` -> ``tables``
"""
