"""What is kept of a session, and whose turn it is in one: clients and pools read and write it in the same way."""
