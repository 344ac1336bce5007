"""Network files for NPUs, with preprocessing and postprocessing in files of their own."""
