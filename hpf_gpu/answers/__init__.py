"""What a fitted model answers: expected counts, likelihoods, recommendations."""
