"""Made-up scenes with exact truth: rooms and yards, a moving camera, moving things; see :func:`render_clips`."""

from streamvggt.synthetic.clips import SyntheticClip, Tracks, render_clips
from streamvggt.synthetic.textures import TextureBank
from streamvggt.synthetic.world import SyntheticConfig

__all__ = ["SyntheticClip", "SyntheticConfig", "TextureBank", "Tracks", "render_clips"]
