"""An HTTP server for images: captions, answers, matches, embeddings, boxes, heat maps and search, and a web page.

`create_app` in [`app`][openblip.serving.app] returns the ASGI application; `openblip serve` runs it. It needs the extra
`serve`. A request passes these steps:

1. `gate` checks host, origin, key, size and the queue by the headers alone, before the body is read.
2. `body` reads the body within its limits; `routes` validate it.
3. `batching` decodes images on a few threads, and batches the work of all requests for the one thread that computes.
"""
