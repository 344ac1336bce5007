"""Browser page and Node.js client of a bundle."""
