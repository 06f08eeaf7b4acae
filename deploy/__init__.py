"""What a node needs in addition to the packages: compose.yaml, locks, and the commands of Triton's container."""
