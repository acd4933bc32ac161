"""Move running averages."""
