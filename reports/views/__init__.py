"""One file a page; each can be run by itself, too."""
