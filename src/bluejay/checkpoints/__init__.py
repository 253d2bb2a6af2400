"""Import and export of published formats through tables; the native format; the catalogue of names."""
