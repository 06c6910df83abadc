"""Training with quantization: from a network to its fake-quantized twin, and on to the tensors of its plan."""
