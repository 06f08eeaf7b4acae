"""Programs for maintainers, behind targets of the Makefile."""
