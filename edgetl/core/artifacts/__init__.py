"""Files that commands write, as dataclasses that writers and readers share."""
