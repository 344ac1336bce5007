"""The frozen backbone as a feature extractor with cached outputs."""
