"""From the user's data to counts: triplets, ids, and the blocks of rows that a fit iterates over."""
