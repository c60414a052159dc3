"""The ``tacit`` command: thin verbs over the rest."""
