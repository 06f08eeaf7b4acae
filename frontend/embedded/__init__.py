"""The embedded Triton of `--embedded`: the server in the `nvidia-pytriton` wheel, started and kept running."""
