"""The wire: schema, generated code, record codec, channel credentials, Flower's private symbols."""
