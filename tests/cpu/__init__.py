"""Tests of the compiled CPU kernels, room by room as in csrc/cpu."""
