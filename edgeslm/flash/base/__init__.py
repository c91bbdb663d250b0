"""Base images from the packages of Debian, for people and machines that have no image of a vendor."""
