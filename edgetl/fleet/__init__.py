"""`edgetl bench --host`: a bundle measured on several devices at once, over OpenSSH."""
