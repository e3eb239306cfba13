"""Clients that simply wait: each draws pictures, one after the other, and never repeats a request. Standard library only.

    python waiting_clients.py --url http://127.0.0.1:7860 --clients 8 --until FILE [--token TOKEN]

Every third one opens a connection for each request, every third one keeps its connection, and every third one keeps it and
pauses, so that it is idle at times. They end when FILE exists. Printed: what they got, as JSON.
"""

import argparse
import http.client
import json
import threading
import time
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

LIMIT_SECONDS = 300.0
BODY = json.dumps({"prompt": "a cat", "steps": 4, "seed": 1})


class Client:
    """One client."""

    def __init__(self, number: int, address: str, token: str | None) -> None:
        self.waits: list[float] = []
        self.failures: list[str] = []
        self._keeps, self._pause = number % 3 > 0, (0.05 + 0.03 * (number % 7)) * (number % 3 == 2)
        self._headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
        self._connection = http.client.HTTPConnection(address, timeout=LIMIT_SECONDS)

    def draw(self, until: Path) -> None:
        """Draw until the file exists."""
        while not until.exists():
            begun = time.monotonic()
            try:
                self._connection.request("POST", "/generate", BODY, self._headers)
                answer = self._connection.getresponse()
                content = answer.read()
                if answer.status != 200:
                    self.failures.append(f"{answer.status} {content[:120]!r}")
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(f"{type(error).__name__}: {error}")
                self._connection.close()
                time.sleep(0.05)
            else:
                self.waits.append(time.monotonic() - begun)
            if not self._keeps:
                self._connection.close()
            time.sleep(self._pause)


def main() -> None:
    """Run all clients and print what they got."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:7860")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--until", type=Path, required=True)
    parser.add_argument("--token")
    options = parser.parse_args()
    clients = [Client(number, urlsplit(options.url).netloc, options.token) for number in range(options.clients)]
    threads = [threading.Thread(target=one.draw, args=(options.until,)) for one in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    waits = sorted(wait for one in clients for wait in one.waits)
    failures = Counter(failure for one in clients for failure in one.failures)
    found = {
        "answered": len(waits), "failed": failures.total(), "failures": dict(failures.most_common(10)),
        "served clients": sum(bool(one.waits) for one in clients),
        "median_s": round(waits[len(waits) // 2], 3) if waits else None, "longest_s": round(waits[-1], 3) if waits else None,
    }  # fmt: skip
    print(json.dumps(found))


if __name__ == "__main__":
    main()
