"""Verbs that do runs of the past again, with calls that are made."""
