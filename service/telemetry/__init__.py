"""What the service tells of itself and of each request: metrics, traces, logs."""
