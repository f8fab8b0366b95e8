"""What tries to break ringraft, and what judges whether it did."""
