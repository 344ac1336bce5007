"""Targets of `make fuzz`: files of every kind that edgetl reads are mutated and read, a row of TARGETS for each kind."""
