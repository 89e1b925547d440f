"""An HTTP server for captions, answers, matches, embeddings, boxes, heat maps and search, with a web page.

`create_app` in [`app`][openblip.serving.app] returns the ASGI application, and `openblip serve` runs it. Both need the
extra `serve`. A request passes these steps:

1. `gate` checks host, origin, key, size and queue from the headers, before the body is read.
2. `body` reads the body within the limits, and `routes` validate it.
3. `batching` decodes images on a few threads, and batches the items of all requests for one compute thread.
"""
