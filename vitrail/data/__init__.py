"""Image files and arrays -> batches: one string names a source (`open_source`), one class feeds it (`Loader`)."""
