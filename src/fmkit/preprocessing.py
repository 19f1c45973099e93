"""To be written."""

preprocess = None
