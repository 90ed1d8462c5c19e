"""The model and its inference: settings, priors, the variational state, coordinate ascent, likelihoods."""
