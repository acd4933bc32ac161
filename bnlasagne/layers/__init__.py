"""Add batch normalization to networks, and freeze it."""
