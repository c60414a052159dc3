"""Give the top-level folders one import name: ``server/`` is imported as ``tacit.server``."""

from setuptools import find_packages, setup

FOLDERS = (
    "core",
    "protos",
    "privacy",
    "learning",
    "attacks",
    "evaluators",
    "audit",
    "server",
    "client",
    "simulation",
    "cli",
)

found = find_packages(include=[*FOLDERS, *(f"{folder}.*" for folder in FOLDERS)])
setup(packages=[f"tacit.{name}" for name in found], package_dir={"tacit": "."})
