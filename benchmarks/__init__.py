"""Measurements of bnlasagne's speed, against its peers and its limit.

``python -m benchmarks`` in the repository's root, or ``make bench``.
"""
