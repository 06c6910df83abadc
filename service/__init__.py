"""The REST service: loads quantized BERT checkpoints and answers classification and QA requests."""

__version__ = "0.1.0"
