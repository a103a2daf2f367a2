"""Our diffusion transformer: `dit.py` in plain torch (start there), and Triton kernels for the same on a GPU in bf16.

May import: torch and triton alone.
"""
