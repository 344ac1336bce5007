"""Photo-like pictures of machined parts on a conveyor belt, good ones and four kinds of bad ones, made on the spot."""
