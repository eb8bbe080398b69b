"""An async gRPC-first service framework: what Go kit is to Go, for Python.

This is the face: what most services ever type. The rest has its own modules (``servicekit.middleware``,
``servicekit.testing``, ``servicekit.memory``).
"""

from __future__ import annotations

from .call import Call, Side
from .call_report import report
from .client import connect
from .clock import Clock, SystemClock
from .current import current_call, detached
from .endpoint import Endpoint, Message, Middleware, chain, only
from .errors import By, CallReport, Code, Error
from .method import Idempotency, Kind, Method
from .middleware import AccessLog, Deadline, LoadShedding, Recovery, RequestId, Retry, standard, standard_client
from .native.tls import Certificates, TlsCredentials
from .process.drain import Drain, Exit
from .server import Server
from .telemetry import Telemetry
from .transport.call_error import CallError
from .transport.channel import Channel
from .transport.interceptors import client_interceptors, server_interceptor
from .wire import BindError

__all__ = [
    "AccessLog",
    "BindError",
    "By",
    "Call",
    "CallError",
    "CallReport",
    "Certificates",
    "Channel",
    "Clock",
    "Code",
    "Deadline",
    "Drain",
    "Endpoint",
    "Error",
    "Exit",
    "Idempotency",
    "Kind",
    "LoadShedding",
    "Message",
    "Method",
    "Middleware",
    "Recovery",
    "RequestId",
    "Retry",
    "Server",
    "Side",
    "SystemClock",
    "Telemetry",
    "TlsCredentials",
    "chain",
    "client_interceptors",
    "connect",
    "current_call",
    "detached",
    "only",
    "report",
    "server_interceptor",
    "standard",
    "standard_client",
]
