"""Files that are written atomically and read within limits."""
