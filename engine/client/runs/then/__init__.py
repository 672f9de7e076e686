"""What there was when a run began, which is needed to do it again: its recorded calls, and what operators kept."""
