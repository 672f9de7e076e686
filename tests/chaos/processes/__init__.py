"""The world of a chaos run: real processes on real servers, and what goes wrong with them."""
