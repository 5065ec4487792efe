"""The same networks as PyTorch modules, to compare with."""
