"""Calls whose workers, engines and servers die: each ends once, and nothing is paid for twice that was not open."""
