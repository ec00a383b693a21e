#!/usr/bin/env python3
"""A WebSocket echo server and its load, for bench.py (python3 stdlib only).

  websocket.py echo --listen 127.0.0.1:PORT
  websocket.py load --target 127.0.0.1:PORT --conns 1000 --rate 2000 --dur 5     prints one line of JSON

The load is an open loop: messages of 32 bytes go out by the clock, over all connections in turn, whether or not the answers
have come; `p50_us` and so on are from when a message was due to when its echo was there.
"""

import argparse, base64, collections, hashlib, json, os, selectors, socket, struct, time

KEY = base64.b64encode(bytes(range(16))).decode()
GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
MASK = b"\x01\x02\x03\x04"


def address(text):
    host, port = text.rsplit(":", 1)
    return host, int(port)


def frames(buffer):
    """takes whole frames off the front: their opcodes and payloads"""
    out, at = [], 0
    while len(buffer) - at >= 2:
        first, second = buffer[at], buffer[at + 1]
        size, head = second & 127, 2
        if size == 126:
            if len(buffer) - at < 4:
                break
            size, head = struct.unpack_from(">H", buffer, at + 2)[0], 4
        mask = None
        if second & 128:
            mask, head = buffer[at + head : at + head + 4], head + 4
        if len(buffer) - at < head + size:
            break
        payload = bytes(buffer[at + head : at + head + size])
        if mask:
            payload = bytes(b ^ mask[i & 3] for i, b in enumerate(payload))
        out.append((first & 15, payload))
        at += head + size
    del buffer[:at]
    return out


def echo(a):
    listener = socket.create_server(address(a.listen), backlog=4096)
    listener.setblocking(False)
    sel = selectors.DefaultSelector()
    sel.register(listener, selectors.EVENT_READ, None)
    while True:
        for key, _ in sel.select():
            if key.data is None:
                try:
                    s, _ = listener.accept()
                except OSError:
                    continue
                s.setblocking(False)
                s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sel.register(s, selectors.EVENT_READ, [bytearray(), False])
                continue
            s, (buffer, open_) = key.fileobj, key.data
            try:
                got = s.recv(65536)
                buffer += got
                if got and not open_ and b"\r\n\r\n" in buffer:
                    head, _, rest = bytes(buffer).partition(b"\r\n\r\n")
                    buffer[:] = rest
                    names = dict(l.lower().split(b": ", 1) for l in head.split(b"\r\n")[1:] if b": " in l)
                    if b"sec-websocket-key" not in names:  # a health check
                        s.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                        continue
                    line = next(l for l in head.split(b"\r\n") if l.lower().startswith(b"sec-websocket-key"))
                    accept = base64.b64encode(hashlib.sha1(line.split(b": ")[1] + GUID.encode()).digest())
                    s.send(
                        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                        b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
                    )
                    key.data[1] = open_ = True
                if open_:
                    said = [bytes([128 | op, len(p)]) + p for op, p in frames(buffer)]
                    if said:
                        s.send(b"".join(said))
            except OSError:
                got = b""
            if not got:
                sel.unregister(s)
                s.close()


def load(a):
    sel = selectors.DefaultSelector()
    ask = (
        f"GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        f"Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ).encode()
    conns = []
    for _ in range(a.conns):
        s = socket.create_connection(address(a.target), 10)
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        s.sendall(ask)
        head = b""
        while b"\r\n\r\n" not in head:
            got = s.recv(4096)
            if not got:
                raise SystemExit(f"refused after {len(conns)}: {head!r}")
            head += got
        if b" 101 " not in head:
            raise SystemExit(f"refused after {len(conns)}: {head!r}")
        s.setblocking(False)
        sel.register(s, selectors.EVENT_READ, (bytearray(), collections.deque()))
        conns.append(s)
    text = b"x" * 32
    frame = bytes([129, 128 | len(text)]) + MASK + bytes(b ^ MASK[i & 3] for i, b in enumerate(text))
    took, sent, failed = [], 0, 0
    begun = time.monotonic()
    end = begun + a.dur
    while True:
        now = time.monotonic()
        if now >= end and (len(took) + failed >= sent or now >= end + 5):
            break
        while begun + sent / a.rate <= now < end:
            s = conns[sent % len(conns)]
            try:
                sel.get_key(s).data[1].append(begun + sent / a.rate)
                s.send(frame)
            except (OSError, KeyError):
                failed += 1
            sent += 1
        due = begun + sent / a.rate if now < end else now + 0.05
        for key, _ in sel.select(max(0, due - now)):
            buffer, waiting = key.data
            try:
                got = key.fileobj.recv(65536)
            except OSError:
                got = b""
            if not got:
                failed += len(waiting)
                sel.unregister(key.fileobj)
                continue
            buffer += got
            now = time.monotonic()
            for opcode, payload in frames(buffer):
                if opcode != 1 or payload != text:
                    failed += 1
                elif waiting:
                    took.append(now - waiting.popleft())
    took.sort()
    at = lambda q: round(took[min(len(took) - 1, int(len(took) * q))] * 1e6) if took else None
    missing = sent - len(took)
    print(json.dumps({"requests": len(took), "failed": missing, "p50_us": at(0.5), "p90_us": at(0.9), "p99_us": at(0.99)}))


if __name__ == "__main__":
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sp = ap.add_subparsers(dest="c", required=True)
    e = sp.add_parser("echo")
    e.add_argument("--listen", required=True)
    l = sp.add_parser("load")
    l.add_argument("--target", required=True)
    l.add_argument("--conns", type=int, default=1000)
    l.add_argument("--rate", type=float, default=2000)
    l.add_argument("--dur", type=float, default=5)
    a = ap.parse_args()
    {"echo": echo, "load": load}[a.c](a)
