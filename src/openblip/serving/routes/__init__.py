"""The routes of the server, one module per part of the API."""
