"""What is written and read again: model files, checkpoints, hpfrec's folder of CSV files."""
