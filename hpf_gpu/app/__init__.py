"""The command ``hpf-gpu`` and what it runs."""
