"""Settings of what calls use: programs, and language models; and what of all settings does not go together."""
