"""Shared by every layer; standard library only."""
