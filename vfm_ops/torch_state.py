"""Loading a model is nobody's business but the loader's: torch's process-wide state is afterwards what it was before.

Constructors draw initial weights from the global generator (and are then overwritten by a checkpoint), and packages set
seeds, flags and thread counts of their own. Left so, whether a model was loaded, or found in a cache, would change every
random number that a user's seeded run draws after it. Every function that builds a network wears `keeps_torch_state`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


@contextmanager
def keeps_torch_state() -> Iterator[None]:
    """Restores, also after an error: the generators of torch (CPU and cards), NumPy and Python, the default dtype, the
    number of threads, gradient mode, and the flags of determinism and of matrix precision.

    A decorator, too: `@keeps_torch_state()`. Initial weights are still drawn from the generators as they stand.
    """
    import torch

    python, numpy = random.getstate(), np.random.get_state()
    # Not fork_rng: it would start CUDA, and copies the state of every card, where none has been used yet.
    cards = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    generator, dtype = torch.get_rng_state(), torch.get_default_dtype()
    threads, grad = torch.get_num_threads(), torch.is_grad_enabled()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    precision = torch.get_float32_matmul_precision()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(generator)
        if cards is not None:
            torch.cuda.set_rng_state_all(cards)
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(grad)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn
        if torch.get_float32_matmul_precision() != precision:
            torch.set_float32_matmul_precision(precision)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
