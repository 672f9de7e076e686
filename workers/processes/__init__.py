"""What the operating system is asked about processes: how they end, who is left, what they have, what they are called."""
