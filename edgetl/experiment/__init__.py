"""Comparison of training strategies on one data set (`edgetl compare`)."""
