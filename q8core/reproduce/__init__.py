"""The paper's table from a user's base model and data: fine-tuning, baselines and QAT over tasks and seeds."""
