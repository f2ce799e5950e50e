"""Run a command, pass its output on, and say every few seconds that it goes on while it says nothing itself.

usage: python tools/alive.py COMMAND...
"""
import os
import subprocess
import sys
import threading
import time

EVERY = 5.0    # seconds of silence


def main() -> int:
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    command = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    begun, heard, at_start = time.monotonic(), [time.monotonic()], [True]

    def remind() -> None:
        while True:
            time.sleep(0.5)
            if time.monotonic() - heard[0] > EVERY:
                heard[0] = time.monotonic()
                words = f"... {os.path.basename(sys.argv[1])} goes on, {heard[0] - begun:.0f} s"
                print(words if at_start[0] else f"\n{words}", file=sys.stderr, flush=True)
                at_start[0] = True

    threading.Thread(target=remind, daemon=True).start()
    while chunk := os.read(command.stdout.fileno(), 65536):
        sys.stdout.buffer.write(chunk)
        sys.stdout.flush()
        heard[0], at_start[0] = time.monotonic(), chunk.endswith(b"\n")
    return command.wait()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
