"""The peer that VX11 grew from: FastAPI, uvloop, redis.asyncio and sse-starlette, written as their documentation shows.

The token route does what ours does: compares the principal token, stores a UUID in Redis with SETEX, answers JSON.
"""

import asyncio
import hmac
import os
import time
import uuid

import redis.asyncio as redis
from fastapi import FastAPI, HTTPException, Request
from sse_starlette.sse import EventSourceResponse

PRINCIPAL = os.environ["VX11_PRINCIPAL_TOKEN"]
TTL = 60
app = FastAPI()
store = redis.Redis(host="127.0.0.1", port=int(os.environ.get("REDIS_PORT", "6379")), db=1)
queues: set[asyncio.Queue] = set()


@app.get("/operator/api/events/sse-token")
async def issue(request: Request):
    presented = request.headers.get("x-vx11-token")
    if presented is None:
        raise HTTPException(401, "auth_required")
    if not hmac.compare_digest(presented, PRINCIPAL):
        raise HTTPException(403, "invalid_token")
    token = str(uuid.uuid4())
    await store.setex(f"token:{token}", TTL, str(time.time()))
    return {"sse_token": token, "expires_in_sec": TTL, "ttl_sec": TTL, "endpoint": "/operator/api/events/stream"}


@app.post("/publish", status_code=202)
async def publish(request: Request):
    text = (await request.body()).decode()
    for queue in queues:
        queue.put_nowait(text)


@app.get("/stream")
async def stream():
    queue: asyncio.Queue = asyncio.Queue()

    async def events():
        queues.add(queue)
        try:
            number = 0
            while True:
                yield {"id": str(number), "data": await queue.get()}
                number += 1
        finally:
            queues.discard(queue)

    return EventSourceResponse(events(), ping=15)
