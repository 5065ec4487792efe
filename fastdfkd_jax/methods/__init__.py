"""Data-free methods; `base` defines the interface that each implements."""
