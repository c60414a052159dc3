"""Small data sets that ship inside the package, each with its attribution."""
