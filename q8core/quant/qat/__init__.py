"""Quantization-aware training: makes a network fake-quantized, and converts it to the tensors of its plan."""
