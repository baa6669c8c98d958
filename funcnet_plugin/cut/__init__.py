"""Which neurons go, and cutting them out."""
