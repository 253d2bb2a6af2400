"""`GET /`: for whoever clicks the server's address. Plain HTML without scripts, open to all."""

from collections.abc import Sequence
from html import escape

from starlette.responses import Response

from bluejay.serving.routes import Call, Route

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Bluejay</title>
<h1>Bluejay</h1>
<p>This is a server of a language model. Programs that speak OpenAI's API reach it at the address
<code>{address}/v1</code>{key}; from a terminal:</p>
<pre>{key_line}bluejay generate "Once upon a time" --url {address}
{key_line}bluejay chat --url {address}</pre>
<h2>What it answers</h2>
<ul>
{routes}
</ul>
<p><a href="/openapi.json">/openapi.json</a> describes all of it.</p>
</html>
"""


def front_page_route(routes: Sequence[Route], *, needs_key: bool) -> Route:
    """The route of a page that lists `routes`."""
    listed = "\n".join(
        f"<li><code>{route.method} {escape(route.path)}</code> {escape(route.summary)}</li>"
        for route in routes
    )

    async def show(call: Call[None]) -> Response:
        page = _PAGE.format(
            address=escape(str(call.request.base_url).rstrip("/")),
            key=" with the API key that its owner has" if needs_key else "; no API key is needed",
            key_line="BLUEJAY_API_KEY=... " if needs_key else "",
            routes=listed,
        )
        return Response(page, media_type="text/html")

    return Route(
        method="GET",
        path="/",
        summary="A page that says what this is. Needs no key.",
        handler=show,
        media_type="text/html",
        is_open=True,
        needs_engine=False,
    )
