"""Where the range of a quantizer comes from."""
