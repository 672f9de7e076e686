"""Settings of what calls use: programs, and language models."""
