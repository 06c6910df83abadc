"""Fine-tuning and quantization-aware training: one loop for both."""
