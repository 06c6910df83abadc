"""One backend's answers beside another's: in one request, in a sample of all, in a file, and where int8 is not sure."""
