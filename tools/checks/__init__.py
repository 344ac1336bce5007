"""Checks of edgetl that need a machine of a certain kind."""
