"""Ends with 0 when the server takes work, else with 1 and why.

    python ready.py [--url http://127.0.0.1:8000] [--wait SECONDS]

For what can run a command but cannot send a key: probes of containers, systemd. The key is that of
the environment, BLUEJAY_API_KEY. Standard library only; with --wait it asks until the time is over.
"""

import argparse
import os
import sys
import time
import urllib.error
import urllib.request

_PAUSE_SECONDS = 0.5
_ANSWER_SECONDS = 5.0


def problem(url: str, key: str) -> str | None:
    """Why no work is taken; None if it is."""
    headers = {"Host": "localhost"} | ({"Authorization": f"Bearer {key}"} if key else {})
    request = urllib.request.Request(f"{url.rstrip('/')}/ready", headers=headers)
    # The server is on this machine: no proxy of the environment stands between.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        opener.open(request, timeout=_ANSWER_SECONDS).close()
    except urllib.error.HTTPError as error:
        with error:
            return f"{error.code} {error.read(500).decode('utf-8', 'replace')}"
    except OSError as error:
        return str(error)
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--wait", type=float, default=0.0, metavar="SECONDS")
    given = parser.parse_args()
    key, deadline = os.environ.get("BLUEJAY_API_KEY", ""), time.monotonic() + given.wait
    while (why := problem(given.url, key)) is not None and time.monotonic() < deadline:
        time.sleep(_PAUSE_SECONDS)
    if why is not None:
        sys.exit(f"not ready: {why}")


if __name__ == "__main__":
    main()
