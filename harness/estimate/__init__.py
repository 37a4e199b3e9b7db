"""What a run will take: its work (`effort`), how fast a machine does it (`rates`), and both together (`forecast`)."""
