"""The bus: topics, messages, and the bindings that carry them. A message is a wake-up, never the only copy of anything."""

import os
import warnings

# oslo.service, which oslo.messaging imports, loads eventlet; nothing here uses it, least of all its resolver of names
os.environ.setdefault("EVENTLET_NO_GREENDNS", "yes")
warnings.filterwarnings("ignore", message=r"\s*Eventlet is deprecated")
