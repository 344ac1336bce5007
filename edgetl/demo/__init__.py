"""The demo: images to report, offline."""
