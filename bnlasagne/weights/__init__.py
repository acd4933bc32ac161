"""Store weights, and exchange them with other frameworks."""
