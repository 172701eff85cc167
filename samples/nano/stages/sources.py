"""Rendered questions and encoded replies out of the work folder, as the stages ask for them."""
