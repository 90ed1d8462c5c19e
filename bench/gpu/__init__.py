"""What bench/gpu_day.py runs: modules with a main are programs of their own."""
