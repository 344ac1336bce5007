"""Images to a run directory: data set, model surgery, recipe; everything that needs torch."""
