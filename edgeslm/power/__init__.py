"""Power: what a board draws and what a prompt costs."""
