"""The service over HTTP: connections, middleware, routes, and the application that joins them."""
