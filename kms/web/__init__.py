"""The HTTPS face: a table of routes, one file a resource; identities, problem documents, OpenAPI."""
