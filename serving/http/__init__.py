"""The server's HTTP side, with its page."""
