"""What a server that is ready cannot see for itself: that its device hangs, and that a file of its
model is no longer the one that it has mapped."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, NoReturn

from bluejay.core.errors import HungError

if TYPE_CHECKING:
    from bluejay.runs.serving import ModelServer
    from bluejay.serving.hang_watch import Hang
    from bluejay.serving.server import Listening

_HUNG = (
    "The device does not answer any more, and the server ends: send the request again when it is"
    " back."
)
_CHANGED = (
    "A file of the model was changed under the running server, whose answers can no longer be"
    " trusted: it must be restarted."
)


class ServerWatch:
    """Looks after a server from a thread that calls `look` every second or so."""

    def __init__(self, server: ModelServer, listening: Listening) -> None:
        from bluejay.serving.hang_watch import HangWatch

        self._lifecycle, self._listening = server.app.lifecycle, listening
        self._hangs = HangWatch(server.pulses, least=server.app.limits.wait.hang_seconds)

    def look(self) -> None:
        """Ends the process if a call of the device hangs: it cannot be cancelled."""
        hang = self._hangs.look()
        if hang is not None:
            self._end(hang)
        self._look_at_files()

    def _end(self, hang: Hang) -> NoReturn:
        from bluejay.serving.errors import unavailable
        from bluejay.serving.lifecycle import LAST_WORDS_SECONDS

        self._listening.give_up(partial(unavailable, _HUNG, code="hung"))
        # On a thread of its own: where nobody reads stderr the process ends all the same.
        threading.Thread(target=_tell, args=(hang,), daemon=True).start()
        time.sleep(LAST_WORDS_SECONDS)
        os._exit(HungError.exit_code)

    def _look_at_files(self) -> None:
        from bluejay.checkpoints.files_in_use import changed_files
        from bluejay.serving.errors import unavailable
        from bluejay.serving.logs import log_trouble

        if self._lifecycle.refusal is not None:
            return
        if changed := changed_files():
            self._lifecycle.refusal = partial(unavailable, _CHANGED, code="model_file_changed")
            log_trouble(
                f"The file {changed[0]} was changed under the running server, whose answers can no"
                " longer be trusted: it takes no more work. Put the right file there, by renaming,"
                " and restart the server."
            )


def _tell(hang: Hang) -> None:
    from bluejay.serving.logs import log_trouble

    faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
    log_trouble(
        f"{hang.name} has waited for the device for {hang.seconds:.0f} s, and the limit is"
        f" {hang.limit:.0f} s: the server ends with status {HungError.exit_code}, to be started"
        " again. The stacks on stderr say where it hangs; if the device is only slow, raise"
        " --hang-timeout."
    )
