"""The web page around the package."""
