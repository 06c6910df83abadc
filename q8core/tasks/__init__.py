"""Tasks: reading data sets, encoding texts as tokens, turning logits into answers and scores."""
