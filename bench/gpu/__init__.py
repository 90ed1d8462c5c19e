"""What bench/gpu_day.py runs, each module but the table a program of its own."""
