"""One thread per process: several threads in each of several test processes would wait for each other."""

import os

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")  # before anything imports PyTorch; subprocesses inherit it
