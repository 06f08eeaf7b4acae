"""What a node needs beside the packages: compose.yaml, locks, and the commands of Triton's container."""
