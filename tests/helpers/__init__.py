"""Oracles and helpers that several tests share."""
