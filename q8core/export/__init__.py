"""Exports checkpoints to the formats of other runtimes."""
