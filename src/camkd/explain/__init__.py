"""Heatmaps of any images: class activation maps of one or several models, as figures, overlays or numbers."""
