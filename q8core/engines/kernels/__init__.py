"""int8 linear layers computed by torch's kernels."""
