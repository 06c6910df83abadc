"""`q8bert loadtest`: sends requests to a service at a fixed rate, or as fast as it answers, and reports how it did."""
