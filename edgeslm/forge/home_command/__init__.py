"""The `home-command` model: turns a spoken-style English command into a JSON intent."""
