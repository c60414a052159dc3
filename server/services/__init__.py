"""The daemon's gRPC services: thin translations between the wire and the rest of the server."""
