"""All arithmetic and cryptography of privacy; no transport."""
