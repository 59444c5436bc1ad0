"""Networks and their parts; they know nothing of data sets, files of a run, or training loops."""
