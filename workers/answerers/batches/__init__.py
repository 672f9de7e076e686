"""Calls that wait for the answers of a provider's batch API."""
