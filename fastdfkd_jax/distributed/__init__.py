"""Devices and processes that share a run."""
