"""What makes a fitted model or changes one: training, batches, fold-in."""
