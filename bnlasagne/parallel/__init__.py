"""Train in many processes."""
