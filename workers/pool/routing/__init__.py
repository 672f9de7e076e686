"""Which models a call may use, and in which order: breakers, and what was measured of each."""
