"""The bus: topics, messages, and the bindings that carry them. A message is a wake-up, never the only copy of anything."""

import warnings

# oslo.service, which oslo.messaging imports, loads eventlet by default; nothing here uses it
warnings.filterwarnings("ignore", message=r"\s*Eventlet is deprecated")
