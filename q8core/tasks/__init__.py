"""Tasks: reading data sets, encoding text into tokens, turning logits into answers and scores."""
