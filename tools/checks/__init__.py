"""Checks of edgetl that need special machines or software."""
