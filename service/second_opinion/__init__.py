"""Both backends' answers compared: in one request, in a sample of requests, in a file, and where int8 is not sure."""
