"""One typed function per verb, the same from Python as from the shell."""
