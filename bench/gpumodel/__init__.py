"""Modules of gpu_model.py."""
