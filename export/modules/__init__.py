"""The networks in plain PyTorch, one file each."""
