"""OpenAI's HTTP API over our store: one module a resource; `app` mounts them, `server` runs them."""
