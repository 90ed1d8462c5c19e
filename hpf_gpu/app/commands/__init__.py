"""The commands of ``hpf-gpu``, one function of its name in each module; it returns the exit status, or None.

They import what they need when they run, so that ``--help`` and usage errors are immediate.
"""
