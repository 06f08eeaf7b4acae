"""The soak: random traffic and faults for half an hour, and a verdict. `python -m tests.soak --help`."""
