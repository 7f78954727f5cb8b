"""Between the socket and the endpoints: what a connection may do, who may ask, and what is written down about it.

protocol   one connection: deadlines, caps, contradictory requests, departed clients
server     uvicorn put together with it
gates      which Host, which key, which other site's pages
keys       the file of key hashes
exchange   one request: trace, headers of every response, counting, the line in the log
access_log those lines, written by a thread
"""
