"""Whole channels: which depend on each other, which are constant or unread, and how layers lose them."""
