"""int8 linear layers through torch's kernels."""
