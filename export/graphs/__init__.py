"""One file a graph, on a small builder that gives every node an address-like name."""
