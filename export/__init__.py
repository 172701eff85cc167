"""Checkpoint -> bundle. Runs on a workstation; needs the extra `edge_sdk[export]`."""
