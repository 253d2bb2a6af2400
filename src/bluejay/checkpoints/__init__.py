"""Published formats in and out through tables, the native format, the catalogue of names."""
