"""Links and transfers between peers."""
