"""Loaders make a runnable model of a plan and its tensors; there is one for each way to compute."""
