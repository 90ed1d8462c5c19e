"""From the user's data to counts: ids, triplets, and the blocks of rows that fits go through."""
