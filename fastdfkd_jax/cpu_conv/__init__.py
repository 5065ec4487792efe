"""Convolutions in the forms that are fast on CPUs."""
