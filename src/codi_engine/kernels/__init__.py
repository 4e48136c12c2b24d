"""Kernels: arrays in, arrays out; no files, no torch, no plugin knowledge."""
