"""The shipped Triton kernels compiled ahead of time, without a GPU: `python -m benchmarks.aot`."""
