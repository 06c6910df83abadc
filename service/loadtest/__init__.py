"""`q8bert loadtest`: asks a running service at a fixed rate, or as fast as it answers, and says how it did."""
