"""The commands of `edge-sdk`, one file each: `add_arguments` describes it, `run` does it and returns the status."""
