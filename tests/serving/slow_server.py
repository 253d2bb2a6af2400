"""A server of the example routes in a process of its own: prints its port, ends on a signal.

python slow_server.py SECONDS_TO_DRAIN
"""

import sys

from bluejay.serving.server import Listening, ServerSettings, run_server
from serving.example_routes import example_routes
from serving.live_server import make_app, quick_limits


def main() -> None:
    """Serve until told to stop."""
    limits = quick_limits(wait={"drain_seconds": float(sys.argv[1])})

    def say(listening: Listening) -> None:
        print(listening.port, flush=True)

    run_server(make_app(example_routes(), limits=limits), ServerSettings(port=0), on_listening=say)
    print("ended", flush=True)


if __name__ == "__main__":
    main()
