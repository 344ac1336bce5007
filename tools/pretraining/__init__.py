"""Images made by code, and pretraining on them: nothing is collected, licensed or downloaded."""
