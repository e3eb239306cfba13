"""A whole service with small models, with the calls of `Light` that need no look inside."""

import os
import re
import signal
import subprocess
import sys
import time

from tests.lifecycles.service import DEADLINE, Gone, Light


class Whole(Light):
    """A real `zwatch serve` on a models root and a state directory, of which one run at a time is made."""

    def begin(self, *, takeover=False):
        self.log_begin = self.log.stat().st_size if self.log.exists() else 0
        command = [
            sys.executable, "-m", "zwatch", "serve", "--models", self.root, "--state-dir", self.state, "--port", "0",
            "--device", "cpu", "--log", "json", "--output-dir", self.images, *(["--takeover"] if takeover else []),
        ]  # fmt: skip
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(command, stderr=log, stdout=log)
        self.url = None

    def connect(self):
        end = time.monotonic() + DEADLINE
        while time.monotonic() < end:
            for entry in self.new_log():
                if (found := re.search(r"serving \S+ at (http://\S+)", str(entry["message"]))) is not None:
                    self.url = found[1]
                    self._http = self.new_connection()
                    return
            if self.process.poll() is not None:
                raise Gone(self.new_log()[-20:])
            time.sleep(0.02)
        raise AssertionError(f"it does not listen: {self.new_log()}")

    def is_settled(self):
        before = self.call("GET", "/attempts")[2]["attempts"]
        time.sleep(3.0)  # a save of the state in between may take long
        after = self.call("GET", "/attempts")[2]["attempts"]
        return after == before and after[0]["state"] not in ("LOADING", "WARMING")

    def _end(self, number):
        if self.process is None:
            return None
        process, self.process = self.process, None
        if process.poll() is None:
            os.kill(process.pid, number)
        status = process.wait(DEADLINE)
        if self._http is not None:
            self._http.close()
        self._http = None
        return -signal.SIGKILL if status == -signal.SIGKILL else status
