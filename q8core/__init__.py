"""Quantization-aware training and integer execution of BERT on CPUs.

The flow: ``tasks`` (data) -> ``training`` -> ``quant`` (prepare, convert) -> ``checkpoint`` -> ``engines``.
"""
