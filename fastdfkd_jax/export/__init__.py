"""The images of a run as other programs read them; `fastdfkd images --help`."""
