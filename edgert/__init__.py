"""edgert."""
