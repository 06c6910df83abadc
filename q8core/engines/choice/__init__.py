"""Which kernel runs a model on this machine."""
