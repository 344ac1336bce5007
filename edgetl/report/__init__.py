"""Pictures and pages made from runs and results; matplotlib is loaded on use."""
