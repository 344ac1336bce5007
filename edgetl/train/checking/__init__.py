"""`edgetl check`: what is wrong with a data set, found before any training."""
