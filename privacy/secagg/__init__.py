"""Secure aggregation: the server learns the sum of its members' vectors, and nothing else of them.

Five steps after Bonawitz et al. (2017, "Practical Secure Aggregation for Privacy-Preserving Machine
Learning"), with signed identities and the consistency round; above 200 members a sparse graph after
Bell et al. (2020, "Secure Single-Server Aggregation with (Poly)Logarithmic Overhead").

======================  ===========================================================================
``terms.py``            what all members agree on (S0), and what no terms may say
``session.py``          who takes part (S1), who holds shares of whom
``graph.py``            how many neighbours suffice, and who they are
``keys.py``             key derivation, agreement, sealing, signatures
``shamir.py``           a secret in shares
``masks.py``            masks on a vector of uint32
``messages.py``         every message, byte by byte
``member_secrets.py``   what a member keeps to itself, and wipes
``guard.py``            what a node must still know after a crash: the seam to its disk
``dealing.py``          a member's shares, dealt and opened
``unmasking.py``        from revealed shares to the bare sum
``client.py``           a member's side of one session
``server.py``           the aggregator's side of one session
======================  ===========================================================================

Nothing here opens a socket or a file, or reads a clock. Nothing is imported here.
"""
