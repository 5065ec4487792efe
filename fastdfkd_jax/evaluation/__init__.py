"""Evaluation of networks on labelled data."""
