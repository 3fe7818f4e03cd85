"""Procedural paired clips: an animated scene and its music (`data/toy`)."""
