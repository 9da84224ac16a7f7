"""What a user types, each command a story."""
