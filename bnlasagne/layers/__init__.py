"""The layer, and how networks get it."""
