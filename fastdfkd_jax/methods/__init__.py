"""Data-free methods; `base` is the contract that each keeps."""
