"""What is fast, against what, measured side by side (a package: opacus installs one so named)."""
