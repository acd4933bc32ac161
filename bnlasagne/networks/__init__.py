"""Walk, copy and change networks."""
