"""From an accepted request to its answer: the pipeline, and where its steps run."""
