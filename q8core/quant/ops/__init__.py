"""One definition of each quantized operation, in float and on integers."""
