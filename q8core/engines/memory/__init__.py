"""Where weights live and how many bytes they take."""
