"""What whoever runs the service asks of it: its models changed, its folders watched, its facts, its keys."""
