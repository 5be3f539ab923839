"""One module per command: `add_parser` names its options, `run` does it."""
