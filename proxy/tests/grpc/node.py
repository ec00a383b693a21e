"""A gRPC server whose messages are plain bytes: node.py NAME [JOURNAL].

It prints its port, and runs until its standard input is closed. With a journal, each unary call is written there before it is answered.
"""

import os
import sys
import threading
from concurrent import futures

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

NAME = sys.argv[1]
JOURNAL = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT) if len(sys.argv) > 2 else None

health_state = health.HealthServicer()
lock = threading.Lock()
ended = {}


def note_end(context, kind):
    """Remembers that a call of this kind was over before it was answered."""

    def over():
        with lock:
            ended[kind] = ended.get(kind, 0) + 1

    return context.add_callback(over)


def unary(request, context):
    if JOURNAL is not None:
        os.write(JOURNAL, NAME.encode() + b" " + request + b"\n")
    given = {key: value for key, value in context.invocation_metadata() if key.startswith("x-test")}
    context.send_initial_metadata((("x-initial", "first"), ("x-initial-bin", b"\x00\xff")))
    context.set_trailing_metadata(tuple((f"{key[:6]}-back{key[6:]}", value) for key, value in given.items()))
    return NAME.encode() + b":" + request


def download(request, context):
    count, size = map(int, request.split())
    for number in range(count):
        yield number.to_bytes(4, "big") + b"d" * size
    context.set_trailing_metadata((("x-count", str(count)),))


def upload(requests, context):
    return str(sum(len(request) for request in requests)).encode()


def talk(requests, context):
    for request in requests:
        yield request


def ticks(requests, context):
    """Speaks every 100 ms until the client says something, and says it again."""
    heard = []
    done = threading.Event()

    def listen():
        heard.append(next(requests, b"the end"))
        done.set()

    threading.Thread(target=listen, daemon=True).start()
    while not done.wait(0.1):
        yield b"tick"
    yield heard[0]


def hear(requests, context):
    """Answers at once, and says how much it has heard when all of it was said."""
    yield b"go on"
    yield str(sum(len(request) for request in requests)).encode()


def fail(request, context):
    context.set_trailing_metadata((("x-why", "gone"), ("grpc-status-details-bin", b"\x08\x05\xff")))
    context.abort(grpc.StatusCode.NOT_FOUND, "no order 50% \u00e9\n2")


def fail_late(request, context):
    yield b"one"
    context.abort(grpc.StatusCode.DATA_LOSS, "half")


def never(request, context):
    over = threading.Event()
    context.add_callback(over.set)
    if not note_end(context, request.decode()):
        over.set()
    with lock:
        ended["left-" + request.decode()] = context.time_remaining()
    over.wait(20)
    return b"too late"


def how_ended(request, context):
    with lock:
        return str(ended.get(request.decode())).encode()


def set_health(request, context):
    status = health_pb2.HealthCheckResponse.ServingStatus.Value(request.decode())
    health_state.set("", status)
    health_state.set("shop.v1.Orders", status)
    return b""


HANDLERS = grpc.method_handlers_generic_handler(
    "test.Node",
    {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Download": grpc.unary_stream_rpc_method_handler(download),
        "Upload": grpc.stream_unary_rpc_method_handler(upload),
        "Talk": grpc.stream_stream_rpc_method_handler(talk),
        "Ticks": grpc.stream_stream_rpc_method_handler(ticks),
        "Hear": grpc.stream_stream_rpc_method_handler(hear),
        "Fail": grpc.unary_unary_rpc_method_handler(fail),
        "FailLate": grpc.unary_stream_rpc_method_handler(fail_late),
        "Never": grpc.unary_unary_rpc_method_handler(never),
        "HowEnded": grpc.unary_unary_rpc_method_handler(how_ended),
        "SetHealth": grpc.unary_unary_rpc_method_handler(set_health),
    },
)

server = grpc.server(futures.ThreadPoolExecutor(max_workers=16))
server.add_generic_rpc_handlers((HANDLERS,))
health_pb2_grpc.add_HealthServicer_to_server(health_state, server)
health_state.set("", health_pb2.HealthCheckResponse.SERVING)
health_state.set("shop.v1.Orders", health_pb2.HealthCheckResponse.SERVING)
port = server.add_insecure_port("127.0.0.1:0")
server.start()
print(port, flush=True)
sys.stdin.read()
server.stop(0)
