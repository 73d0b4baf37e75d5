"""Tests that need an NVIDIA GPU. The same kernels run without one through tests/shim."""
