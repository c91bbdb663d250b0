"""Model packages: reading, writing and verifying ``.slm`` files, and the content-addressed store."""
