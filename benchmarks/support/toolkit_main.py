"""Start SageMaker's PyTorch inference toolkit like its container, but on 127.0.0.1 and with separate files.

    python toolkit_main.py INFERENCE_PORT MANAGEMENT_PORT METRICS_PORT

Runs under the Python that has the toolkit, in the folder for logs and model store; `hosts.py` starts it. The toolkit
writes its settings to /etc, listens on all addresses, and treats any TorchServe of the machine as its own. These three
behaviours are replaced. Everything else is the toolkit's: it installs code/requirements.txt, writes TorchServe's
settings, starts TorchServe with its handler service and waits for it.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
from sagemaker_pytorch_serving_container import serving, torchserve

_toolkit_settings = torchserve._generate_ts_config_properties


def _loopback_settings(handler_service: str) -> str:
    """The toolkit's own settings with loopback addresses and the ports of the command line."""
    text: str = _toolkit_settings(handler_service)
    for name, port in zip(("inference", "management", "metrics"), sys.argv[1:4]):
        text = re.sub(rf"^{name}_address=.*\n", "", text, flags=re.MULTILINE)
        text += f"{name}_address=http://127.0.0.1:{port}\n"
    return text


def _own_server(seconds: float = 60.0) -> psutil.Process:
    """The TorchServe that this toolkit started; its process id is in the toolkit's temporary folder."""
    path = Path(tempfile.gettempdir()) / ".model_server.pid"
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if path.is_file() and path.read_text():
            return psutil.Process(int(path.read_text()))
        time.sleep(0.05)
    raise SystemExit(f"TorchServe wrote no {path} within {seconds:.0f} s.")


def _end_with(parent: int) -> None:
    """Kill the process group when the parent process ends, even if it was killed."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os.killpg(os.getpgrp(), signal.SIGKILL)


def main() -> None:
    torchserve.TS_CONFIG_FILE = os.path.abspath("sagemaker-ts.properties")
    torchserve._generate_ts_config_properties = _loopback_settings
    torchserve._retrieve_ts_server_process = _own_server
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    serving.main()


if __name__ == "__main__":
    main()
