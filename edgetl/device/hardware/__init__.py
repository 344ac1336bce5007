"""What the machine is and what it is doing."""
