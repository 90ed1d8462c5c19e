"""Queries to a fitted model: expected counts, log-likelihoods, recommendations."""
