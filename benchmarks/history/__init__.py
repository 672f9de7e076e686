"""What is read of the past: runs in a large stream, and replays."""
