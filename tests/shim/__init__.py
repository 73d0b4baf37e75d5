"""The CUDA backend on a machine without a GPU: see engine.h, cuda/seam.h and device.cpp in this folder."""
