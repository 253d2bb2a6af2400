"""Programs of others against a live `bluejay serve`, for tools/check_clients.py."""
