"""Rules that set the range of a quantizer."""
