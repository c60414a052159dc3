"""Heart disease data of four hospitals; README.md says where they come from."""
