"""Calls of every kind: client.py TARGET CASE [ARGUMENT]. What is not as it should be ends it with a traceback."""

import sys
import threading
import time

import grpc

PATIENCE = 20
TARGET, CASE = sys.argv[1:3]


def connect():
    """A connection of its own, that reports every failure as it is."""
    options = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
    return grpc.insecure_channel(TARGET, options=options)


channel = connect()


def method(kind, name):
    return getattr(channel, kind)(f"/test.Node/{name}")


def call(name, request=b"", timeout=PATIENCE, **more):
    return method("unary_unary", name)(request, timeout=timeout, **more)


def refused(action):
    """The error that ends a call which must not succeed."""
    try:
        done = action()
    except grpc.RpcError as error:
        return error
    raise AssertionError(f"succeeded: {done!r}")


def until(what, is_so):
    end = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < end, f"in vain: {what}"
        time.sleep(0.01)


def unary():
    metadata = (("x-test", "a b"), ("x-test-bin", b"\x00\x01\xfe"))
    for number in range(100):
        done, over = method("unary_unary", "Unary").with_call(b"%d" % number, timeout=PATIENCE, metadata=metadata)
        assert done == b"a:%d" % number, done
        first, last = dict(over.initial_metadata()), dict(over.trailing_metadata())
        assert first["x-initial"] == "first" and first["x-initial-bin"] == b"\x00\xff", first
        assert last["x-test-back"] == "a b" and last["x-test-back-bin"] == b"\x00\x01\xfe", last
    big = b"b" * (3 << 20)
    assert call("Unary", big) == b"a:" + big
    assert call("Unary") == b"a:"


def server_streaming():
    for count, size in [(0, 0), (3000, 10), (200, 100_000)]:
        stream = method("unary_stream", "Download")(b"%d %d" % (count, size), timeout=PATIENCE)
        for number, message in enumerate(stream):
            assert message == number.to_bytes(4, "big") + b"d" * size
        assert count == 0 or number == count - 1
        assert dict(stream.trailing_metadata())["x-count"] == str(count)


def client_streaming():
    for count, size in [(0, 0), (3000, 10), (200, 100_000)]:
        done = method("stream_unary", "Upload")((b"u" * size for _ in range(count)), timeout=PATIENCE)
        assert done == str(count * size).encode(), done


def dialogue():
    """Each message is an answer to the one before."""
    heard = threading.Semaphore(1)

    def say():
        for number in range(300):
            assert heard.acquire(timeout=PATIENCE)
            yield b"%d" % number

    for number, message in enumerate(method("stream_stream", "Talk")(say(), timeout=PATIENCE)):
        assert message == b"%d" % number
        heard.release()
    assert number == 299


def both_at_once():
    """More in both directions than all windows together hold."""
    sent = (bytes([number % 251]) * 200_000 for number in range(200))
    for number, message in enumerate(method("stream_stream", "Talk")(sent, timeout=PATIENCE)):
        assert message == bytes([number % 251]) * 200_000
    assert number == 199


def quiet_client():
    """Says nothing for longer than bodies may pause, while it listens."""
    enough = threading.Event()

    def say():
        assert enough.wait(PATIENCE)
        yield b"enough"

    said = []
    for message in method("stream_stream", "Ticks")(say(), timeout=PATIENCE):
        said.append(message)
        if len(said) == 30:
            enough.set()
    assert said[-1] == b"enough" and len(said) > 30, said[-1]


def quiet_server():
    """Says much for longer than the node may pause, and is heard."""

    def say():
        for _ in range(30):
            time.sleep(0.1)
            yield b"x" * 1000

    said = list(method("stream_stream", "Hear")(say(), timeout=PATIENCE))
    assert said == [b"go on", b"30000"], said


def errors():
    error = refused(lambda: call("Fail"))
    assert error.code() == grpc.StatusCode.NOT_FOUND, error
    assert error.details() == "no order 50% \u00e9\n2", error
    trailers = dict(error.trailing_metadata())
    assert trailers["x-why"] == "gone" and trailers["grpc-status-details-bin"] == b"\x08\x05\xff", trailers
    assert refused(lambda: call("Nothing")).code() == grpc.StatusCode.UNIMPLEMENTED
    stream = method("unary_stream", "FailLate")(b"", timeout=PATIENCE)
    assert next(stream) == b"one"
    error = refused(lambda: next(stream))
    assert (error.code(), error.details()) == (grpc.StatusCode.DATA_LOSS, "half"), error


def deadline():
    error = refused(lambda: call("Never", b"deadline", timeout=0.5))
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error
    left = float(call("HowEnded", b"left-deadline"))
    assert 0 < left <= 0.5, left
    until("the server has seen it", lambda: call("HowEnded", b"deadline") == b"1")


def cancel():
    under_way = method("unary_unary", "Never").future(b"cancel", timeout=PATIENCE)
    until("it is there", lambda: call("HowEnded", b"left-cancel") != b"None")
    assert under_way.cancel()
    until("the server has seen it", lambda: call("HowEnded", b"cancel") == b"1")
    # A stream that is not read to its end.
    stream = method("stream_stream", "Talk")(iter([b"one"]), timeout=PATIENCE)
    assert next(stream) == b"one"
    stream.cancel()
    assert call("Unary", b"x") == b"a:x"


def load():
    """Calls from many threads until standard input says stop; then prints what became of each."""
    stop = threading.Event()
    results = []

    def work(worker):
        own = connect().unary_unary("/test.Node/Unary")
        number = 0
        while not stop.is_set():
            name = f"{worker}-{number}"
            try:
                done = own(name.encode(), timeout=PATIENCE).decode()
                results.append((name, "OK", done.split(":")[0]))
            except grpc.RpcError as error:
                results.append((name, error.code().name, "-"))
            number += 1

    workers = [threading.Thread(target=work, args=(worker,)) for worker in range(8)]
    for worker in workers:
        worker.start()
    for mark in sys.stdin:
        if mark.strip() == "stop":
            break
        # So many more must have succeeded before it says so.
        wanted = sum(result[1] == "OK" for result in results) + int(mark)
        until("they succeed", lambda: sum(result[1] == "OK" for result in results) >= wanted)
        print("so far", flush=True)
    stop.set()
    for worker in workers:
        worker.join()
    for result in results:
        print(*result)


def set_health():
    call("SetHealth", sys.argv[3].encode())


globals()[CASE]()
