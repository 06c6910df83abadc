"""What runs the application: one process, several workers behind one port, and what they set for their process."""
