"""A run as pages, pictures and figures."""
