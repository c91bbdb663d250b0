"""Images of disks: read as streams, and changed file by file without mounting them."""
