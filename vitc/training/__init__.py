"""One run: configuration in, run folder out."""
