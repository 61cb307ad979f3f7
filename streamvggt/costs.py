"""What the frames of streams cost in bytes, from the sizes of the network and of the frames."""

from __future__ import annotations

from .config import StreamVGGTConfig
from .policies import Costs
from .stores import Storage
from .tokens import LABEL_BYTES
from .tracks import pyramid_bytes


def frame_costs(
    config: StreamVGGTConfig,
    shape: tuple[int, int, int],
    *,
    storage: Storage,
    key_bytes: int,
    head_bytes: int,
    queries: int,
    memory: int | None,
) -> Costs:
    """Say what each frame of streams costs, and what there is to spend on all.

    Args:
        config: sizes of the network.
        shape: B, H, W: streams, height and width in pixels.
        storage: how the blocks' keys and values are kept.
        key_bytes: bytes of a number in the blocks' precision.
        head_bytes: the same in the heads' precision.
        queries: frames on which points to follow were named.
        memory: bytes for everything; None for no limit.

    Raises:
        ValueError: what does not depend on the number of frames alone takes more than the memory.
    """
    b, height, width = shape
    tokens = config.tokens_per_frame(height, width)
    key = config.embed_dim * (1 if storage == "int8" else key_bytes)
    # Scales in bfloat16: one for a value in each head, and one for each channel of a frame's keys.
    value_scale, key_scales = (2 * config.num_heads, 2 * config.embed_dim) if storage == "int8" else (0, 0)
    camera_key = 2 * config.embed_dim * head_bytes * config.camera_iterations
    pyramid = pyramid_bytes(config, height, width, head_bytes) if queries else 0
    # Descriptors of the last call stay until the next one succeeds.
    descriptors = 0 if config.match_layer is None else 4 * (tokens - config.special_tokens) * config.match_dim * 4
    room = None
    if memory is not None:
        room = memory - b * (descriptors + pyramid * (queries + 1))
        if room < 0:
            raise ValueError(
                f"a memory of {memory:,} bytes is too little: descriptors and features of point tracks alone take "
                f"{memory - room:,}; give it more"
            )
    # Beside all that is held, one buffer can be there twice: while it grows, or shrinks.
    camera = camera_key * (2 * config.camera_depth + 1)
    return Costs(
        tokens=tokens,
        special=config.special_tokens,
        token=b * (key * (2 * config.depth + 1) + value_scale * config.depth),
        label=b * LABEL_BYTES * config.num_heads * config.depth,
        frame=b * (camera + key_scales * config.depth + 4 * config.embed_dim + pyramid),
        room=room,
    )
