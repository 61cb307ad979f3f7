"""The model behind the page: loaded on first use, one for all visitors."""

from functools import lru_cache

import torch

from streamvggt import StreamVGGT, load_model

MODEL = "small"


@lru_cache(maxsize=1)
def model() -> StreamVGGT:
    """Load the bundled network, on the GPU where there is one."""
    return load_model(MODEL, device="cuda" if torch.cuda.is_available() else "cpu")
