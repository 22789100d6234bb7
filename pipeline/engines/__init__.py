"""Engines run the stages over the pieces: `ray` on actors, `local` in this process. The name in the config is the module."""

GRACE_SECONDS = 20.0
"""After SIGTERM, how long the writes in flight may take before the workers are taken down."""
