"""What no algorithm is about."""
