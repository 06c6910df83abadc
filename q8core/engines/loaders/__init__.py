"""From a plan and its tensors to a model that runs: one loader for each way to compute."""
