"""Live 3D from video."""
