"""A local server that speaks OpenAI's Realtime protocol, and a page to talk to it.

    server = edge_sdk.server.app.Server(bundle)       # or: edge-sdk serve BUNDLE

From the outside in: `app` has the routes, `access` says who may come in, `connection` is one websocket, `session` one
conversation with its thread, `response` one reply. `client_events` reads what clients send, `settings` what they set,
`items` is the conversation as the protocol has it, `spelling` writes the protocol's two generations.
"""
