"""One script for each thing that the API can do: `python -m docs.examples.text_to_video`."""
