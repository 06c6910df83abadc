"""Running the application: in one process or in several workers behind one port, and their process-wide settings."""
