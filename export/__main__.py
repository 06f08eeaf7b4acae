"""`python -m export`: from a checkpoint to a folder of Triton's model repository."""

from export.command import main

if __name__ == "__main__":
    main(prog_name="python -m export")
