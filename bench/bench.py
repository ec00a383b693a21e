#!/usr/bin/env python3
"""Interleaved reverse-proxy benchmark and failover harness (python3 stdlib only).

  bench.py run   [--peers nginx,haproxy,...] [--own own.json] [--tests keepalive,...] [--runs 3]
                 [--dur 5] [--out results.jsonl] [--quick]
  bench.py report results.jsonl [...]          print min/median/max tables (markdown)
  bench.py list                                show known peers and tests

Every (run, test, peer) starts the proxy afresh, pinned to CPU 0; load generator and backend are
pinned to CPU 1. The number to trust on a noisy machine is cpu_us/req: on-CPU time of the proxy's
whole process tree (schedstat, ns) divided by finished requests.

Peers that are not installed are skipped, and that is said. own.json adds peers (see peers.json for the format, and README.md
for the placeholders):
  {"mine": {"perf": {"cfg": "/path/tmpl.toml", "cmd": "/path/ourproxy --config {{CFG}}"},
            "failover": {...same...}, "caps": ["tls", "h2"]}}
"""

import argparse, collections, ctypes, fcntl, json, os, re, resource, shlex, shutil, signal, socket, ssl
import statistics, struct, subprocess, sys, tempfile, time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
TOOLS = os.environ.get("BENCH_TOOLS", ROOT + "/target/bench-tools/release")
PROXY_CPU, LOAD_CPU = os.environ.get("PROXY_CPU", "0"), os.environ.get("LOAD_CPU", "1")
PORT, TLS_PORT, B1_PORT, B2_PORT, ADMIN_PORT = 18080, 18443, 19001, 19002, 18081
HDRS = [
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
    "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
    "Accept-Language: en-US,en;q=0.5",
    "Accept-Encoding: gzip, deflate, br",
    "Cookie: session=0123456789abcdef0123456789abcdef; theme=dark",
]


# ---------------------------------------------------------------- machine
def netns():
    """own network namespace: private ports, own sysctls; only its loopback is up."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(0x40000000) != 0:
        return False
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    ifr = struct.pack("16sh14x", b"lo", 0x1 | 0x40)  # IFF_UP|IFF_RUNNING
    fcntl.ioctl(s, 0x8914, ifr)
    s.close()
    for k, v in {
        "ipv4/ip_local_port_range": "20000 64999",
        "core/somaxconn": "8192",
        "ipv4/tcp_congestion_control": "cubic",
        "ipv4/tcp_max_syn_backlog": "8192",
        "ipv4/tcp_tw_reuse": "1",
    }.items():
        try:
            open("/proc/sys/net/" + k, "w").write(v)
        except OSError as e:
            print("sysctl", k, e, file=sys.stderr)
    return True


def nofile():
    """raise the limit as far as allowed (20000 where CAP_SYS_RESOURCE is missing)"""
    for n in (100000, resource.getrlimit(resource.RLIMIT_NOFILE)[1]):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (n, n))
            return n
        except (ValueError, OSError):
            pass


def tree(pid):
    kids = collections.defaultdict(list)
    for d in os.listdir("/proc"):
        if d.isdigit():
            try:
                s = open(f"/proc/{d}/stat").read()
            except OSError:
                continue
            kids[int(s.rsplit(")", 1)[1].split()[1])].append(int(d))
    out, todo = [], [pid]
    while todo:
        p = todo.pop()
        out.append(p)
        todo += kids[p]
    return out


def cpu_ns(pids):
    """(on-cpu ns, user ticks, sys ticks) over the tasks of these processes"""
    ns = u = s = 0
    for p in pids:
        try:
            for t in os.listdir(f"/proc/{p}/task"):
                try:
                    ns += int(open(f"/proc/{p}/task/{t}/schedstat").read().split()[0])
                except (OSError, IndexError):
                    pass
            f = open(f"/proc/{p}/stat").read().rsplit(")", 1)[1].split()
            u += int(f[11])
            s += int(f[12])
        except OSError:
            pass
    return ns, u, s


def rss_kb(pids, what="VmRSS"):
    n = 0
    for p in pids:
        try:
            m = re.search(what + r":\s+(\d+)", open(f"/proc/{p}/status").read())
            n += int(m.group(1)) if m else 0
        except OSError:
            pass
    return n


def pss_kb(pids):
    n = 0
    for p in pids:
        try:
            n += int(re.search(r"^Pss:\s+(\d+)", open(f"/proc/{p}/smaps_rollup").read(), re.M).group(1))
        except OSError:
            pass
    return n


def busy():
    """jiffies of each cpu: (idle, total, steal, softirq)"""
    r = {}
    for l in open("/proc/stat"):
        if re.match(r"cpu\d", l):
            f = l.split()
            v = [int(x) for x in f[1:]]
            r[f[0]] = (v[3] + v[4], sum(v[:8]), v[7], v[6])
    return r


# ---------------------------------------------------------------- processes
class Proc:
    def __init__(self, cmd, cpu, env=None, log=None, **kw):
        self.argv = ["taskset", "-c", cpu] + cmd
        e = dict(os.environ)
        e.update(env or {})
        self.p = subprocess.Popen(
            self.argv,
            env=e,
            stdout=kw.pop("stdout", log or subprocess.DEVNULL),
            stderr=log or subprocess.DEVNULL,
            start_new_session=True,
            **kw,
        )
        self.pid = self.p.pid

    def kill(self, sig=signal.SIGKILL):
        ps = tree(self.pid)
        for p in ps:
            try:
                os.kill(p, sig)
            except ProcessLookupError:
                pass
        self.p.wait()


def wait_port(port, t=15.0, host="127.0.0.1"):
    end = time.monotonic() + t
    while time.monotonic() < end:
        try:
            socket.create_connection((host, port), 0.2).close()
            return True
        except OSError:
            time.sleep(0.02)
    return False


def backend(port, name="p", *extra):
    b = Proc([TOOLS + "/bk", "--listen", f"127.0.0.1:{port}", "--name", name, *extra], LOAD_CPU)
    assert wait_port(port), "backend did not start"
    return b


def echo(port):
    b = Proc([HERE + "/websocket.py", "echo", "--listen", f"127.0.0.1:{port}"], LOAD_CPU)
    assert wait_port(port), "echo did not start"
    return b


def subst(s, d):
    return re.sub(r"\{\{(\w+)\}\}", lambda m: str(d.get(m.group(1), "")), s)


class Ctx:
    def __init__(self, work):
        self.work = work
        crt, key, pem = work + "/cert.pem", work + "/key.pem", work + "/both.pem"
        if not os.path.exists(pem):
            subprocess.run(
                [
                    "openssl",
                    "req",
                    "-x509",
                    "-newkey",
                    "ec",
                    "-pkeyopt",
                    "ec_paramgen_curve:prime256v1",
                    "-nodes",
                    "-keyout",
                    key,
                    "-out",
                    crt,
                    "-days",
                    "3650",
                    "-subj",
                    "/CN=localhost",
                    "-addext",
                    "subjectAltName=DNS:localhost,IP:127.0.0.1",
                ],
                check=True,
                stderr=subprocess.DEVNULL,
            )
            open(pem, "w").write(open(crt).read() + open(key).read())
        self.v = dict(
            LISTEN=f"127.0.0.1:{PORT}",
            PORT=PORT,
            TLS_LISTEN=f"127.0.0.1:{TLS_PORT}",
            TLS_PORT=TLS_PORT,
            B1=f"127.0.0.1:{B1_PORT}",
            B2=f"127.0.0.1:{B2_PORT}",
            B1_PORT=B1_PORT,
            B2_PORT=B2_PORT,
            CERT=crt,
            KEY=key,
            PEM=pem,
            DIR=work + "/run",
            HERE=HERE,
            ROOT=ROOT,
            HOTWARM=os.environ.get("HOTWARM", ROOT + "/target/release/hotwarm"),
            ADMIN_PORT=ADMIN_PORT,
            NOFILE=resource.getrlimit(resource.RLIMIT_NOFILE)[1],
            MAXCONN=os.environ.get("MAXCONN", resource.getrlimit(resource.RLIMIT_NOFILE)[1] // 2 - 50),
        )


def start(ctx, peers, name, profile, extra=None):
    d = peers[name][profile]
    v = dict(ctx.v)
    v.update(d.get("vars", {}))
    v.update(extra or {})
    shutil.rmtree(v["DIR"], ignore_errors=True)
    os.makedirs(v["DIR"])
    if d.get("cfg"):
        src = d["cfg"] if d["cfg"].startswith("/") else HERE + "/peers/" + d["cfg"]
        v["CFG"] = v["DIR"] + "/" + os.path.basename(src)
        if not os.path.splitext(v["CFG"])[1]:
            v["CFG"] += ".conf"
        open(v["CFG"], "w").write(subst(open(src).read(), v))
    cmd = shlex.split(subst(d["cmd"], v))
    env = {k: subst(str(x), v) for k, x in d.get("env", {}).items()}
    while cmd and re.match(r"^[A-Z_0-9]+=", cmd[0]):
        k, x = cmd.pop(0).split("=", 1)
        env[k] = x
    log = open(ctx.work + f"/{name}.log", "ab")
    p = Proc(cmd, PROXY_CPU, env, log)
    if not wait_port(PORT):
        p.kill()
        raise RuntimeError(f"{name} did not open port {PORT}; see {ctx.work}/{name}.log")
    time.sleep(0.3)
    return p


# ---------------------------------------------------------------- load
def wrk(url, conns, dur, hdrs=HDRS, body=0, timeout="30s"):
    cmd = [
        "taskset",
        "-c",
        LOAD_CPU,
        "wrk",
        "-t1",
        f"-c{conns}",
        f"-d{dur}s",
        "--timeout",
        timeout,
        "-s",
        HERE + "/report.lua",
    ]
    for h in hdrs:
        cmd += ["-H", h]
    o = subprocess.run(cmd + [url], env=dict(os.environ, WRK_BODY=str(body)), capture_output=True, text=True)
    m = re.search(r"^JSON (.*)$", o.stdout, re.M)
    if not m:
        raise RuntimeError("wrk: " + o.stdout[-500:] + o.stderr[-500:])
    return json.loads(m.group(1))


def h2load(url, conns, streams, dur):
    cmd = ["taskset", "-c", LOAD_CPU, "h2load", "-D", str(dur), "-c", str(conns), "-m", str(streams), "-t1"]
    for h in HDRS:
        cmd += ["-H", h]
    o = subprocess.run(cmd + [url], capture_output=True, text=True).stdout
    m = re.search(
        r"requests: \d+ total, \d+ started, (\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", o
    )
    pr = re.search(r"Application protocol: (\S+)", o)
    t = re.search(r"time for request:\s+(\S+)\s+(\S+)\s+(\S+)", o)
    if not m:
        raise RuntimeError("h2load: " + o[-800:])
    return {
        "requests": int(m.group(2)),
        "failed": int(m.group(3)) + int(m.group(5)),
        "proto": pr.group(1) if pr else "?",
        "mean": t.group(3) if t else "",
        "dur_us": int(dur * 1e6),
    }


def measured(pids, fn):
    for p in pids:
        try:
            open(f"/proc/{p}/clear_refs", "w").write("5")
        except OSError:
            pass
    c0, w0, b0 = cpu_ns(pids), time.monotonic(), busy()
    r = fn()
    c1, w1, b1 = cpu_ns(pids), time.monotonic(), busy()
    d = (c1[0] - c0[0]) / 1e9
    pc = "cpu" + PROXY_CPU
    tot = max(1, b1[pc][1] - b0[pc][1])
    r.update(
        cpu_s=d,
        wall_s=w1 - w0,
        util=d / (w1 - w0),
        sys_share=(c1[2] - c0[2]) / max(1, c1[2] + c1[1] - c0[2] - c0[1]),
        cpu0_busy=1 - (b1[pc][0] - b0[pc][0]) / tot,
        steal=(b1[pc][2] - b0[pc][2]) / tot,
        peak_rss_mb=rss_kb(pids, "VmHWM") / 1024,
    )
    return r


def per_req(r):
    r["rps"] = r["requests"] / (r["dur_us"] / 1e6)
    r["cpu_us_req"] = r["cpu_s"] * 1e6 / max(1, r["requests"])
    return r


def per_gb(r, nbytes):
    r["gbps"] = nbytes * 8 / 1e9 / (r["dur_us"] / 1e6)
    r["cpu_s_gb"] = r["cpu_s"] / (nbytes / 1e9)
    return r


# HAProxy takes two descriptors for each connection: 10,000 are more than it can be given where 20,000 are the limit.
MORE_IDLE = int(os.environ.get("MORE_IDLE", 900))
H, S = f"http://127.0.0.1:{PORT}", f"https://localhost:{TLS_PORT}"


def t_keepalive(p, a):
    wrk(H + "/", 64, 1)
    return per_req(measured(p, lambda: wrk(H + "/", 64, a.dur)))


def t_keepalive1(p, a):
    wrk(H + "/", 1, 1)
    return per_req(measured(p, lambda: wrk(H + "/", 1, a.dur)))


def t_newconn(p, a):
    h = HDRS + ["Connection: close"]
    wrk(H + "/", 32, 1, h)
    return per_req(measured(p, lambda: wrk(H + "/", 32, a.dur, h)))


def t_tls(p, a):
    wrk(S + "/", 64, 1)
    return per_req(measured(p, lambda: wrk(S + "/", 64, a.dur)))


TLSHS = r"""
import socket,ssl,sys,time
c=ssl.create_default_context();c.check_hostname=False;c.verify_mode=ssl.CERT_NONE;c.set_alpn_protocols(["http/1.1"]);n=f=0;e=time.monotonic()+float(sys.argv[2])
while time.monotonic()<e:
    s=socket.create_connection(("127.0.0.1",int(sys.argv[1])),10)
    try: c.wrap_socket(s,server_hostname="localhost").close();n+=1
    except OSError: f+=1;s.close()
print(n,f)
"""


def t_tlshs(p, a):
    """full TLS 1.3 handshakes (no resumption), no request: 4 python clients"""

    def go():
        w = time.monotonic()
        n = f = 0
        ps = [
            subprocess.Popen(
                ["taskset", "-c", LOAD_CPU, sys.executable, "-c", TLSHS, str(TLS_PORT), str(a.dur)],
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(4)
        ]
        for q in ps:
            x = q.communicate()[0].split()
            n += int(x[0])
            f += int(x[1])
        return {"requests": n, "failed": f, "dur_us": int((time.monotonic() - w) * 1e6)}

    return per_req(measured(p, go))


def t_tlsresume(p, a):
    """wrk keeps its SSL object over Connection: close, so these are resumed handshakes + 1 request"""
    h = HDRS + ["Connection: close"]
    wrk(S + "/", 16, 1, h)
    return per_req(measured(p, lambda: wrk(S + "/", 16, a.dur, h)))


def t_h2(p, a):
    h2load(S + "/", 8, 32, 1)
    return per_req(measured(p, lambda: h2load(S + "/", 8, 32, a.dur)))


def t_body1m(p, a):
    wrk(H + "/b/1048576", 8, 1)
    r = measured(p, lambda: wrk(H + "/b/1048576", 8, a.dur))
    return per_gb(r, r["bytes"])


def t_body100m(p, a):
    r = measured(p, lambda: wrk(H + "/b/104857600", 2, a.dur))
    return per_gb(r, r["bytes"])


def t_upload10m(p, a):
    n = 10 << 20
    r = measured(p, lambda: wrk(H + "/up", 4, a.dur, body=n))
    return per_gb(r, r["requests"] * n)


def olgen(*x, **kw):
    o = subprocess.run(
        ["taskset", "-c", LOAD_CPU, TOOLS + "/olgen", *map(str, x)], capture_output=True, text=True, **kw
    ).stdout
    return json.loads(o.strip().splitlines()[-1])


def t_rate(p, a, port=PORT):
    olgen("open", "--target", f"127.0.0.1:{port}", "--rate", 2000, "--dur", 0.5, "--conns", 16)
    r = measured(
        p, lambda: olgen("open", "--target", f"127.0.0.1:{port}", "--rate", 2000, "--dur", a.dur, "--conns", 16)
    )
    r["requests"], r["dur_us"] = r["ok"], int(a.dur * 1e6)
    return per_req(r)


def t_websocket(p, a):
    w = [HERE + "/websocket.py", "load", "--target", f"127.0.0.1:{PORT}", "--conns", "1000", "--rate", "2000"]

    def load(dur):
        o = subprocess.run(["taskset", "-c", LOAD_CPU, *w, "--dur", str(dur)], capture_output=True, text=True)
        if o.returncode:
            raise RuntimeError("websocket: " + (o.stdout + o.stderr)[-500:])
        return json.loads(o.stdout)

    # Opening a thousand connections is not what is measured, so their cost in another, short run is taken off.
    short, long = measured(p, lambda: load(0.5)), measured(p, lambda: load(0.5 + a.dur))
    r = dict(long, requests=long["requests"] - short["requests"], dur_us=int(a.dur * 1e6))
    r.update(cpu_s=long["cpu_s"] - short["cpu_s"], failed=long["failed"] + short["failed"])
    return per_req(r)


def t_half(p, a):
    """an open loop at about half of what the proxies can do: what latency they add"""
    o = ["open", "--target", f"127.0.0.1:{PORT}", "--rate", 20000, "--conns", 64]
    olgen(*o, "--dur", 0.5)
    r = measured(p, lambda: olgen(*o, "--dur", a.dur))
    r["requests"], r["dur_us"] = r["ok"], int(a.dur * 1e6)
    return per_req(r)


def t_stream10g(p, a):
    """10 GiB down, then 10 GiB up without a length: the proxy's memory at its most"""
    n = 10 << 30
    out = {}

    def curl(*x):
        w = time.monotonic()
        o = subprocess.run(["taskset", "-c", LOAD_CPU, "curl", "-sS", "-o", "/dev/null", "-w", "%{http_code} %{size_download}", *x],
                           stdin=feed.stdout if feed else None, capture_output=True, text=True)
        out["answer"] = o.stdout + o.stderr
        return {"dur_us": int((time.monotonic() - w) * 1e6)}

    feed = None
    down = per_gb(measured(p, lambda: curl(H + f"/b/{n}")), n)
    down_ok = out["answer"] == f"200 {n}"
    feed = subprocess.Popen(["taskset", "-c", LOAD_CPU, "head", "-c", str(n), "/dev/zero"], stdout=subprocess.PIPE)
    up = per_gb(measured(p, lambda: curl("-T", "-", H + "/up")), n)
    feed.wait()
    return {
        "down_ok": down_ok,
        "up_ok": out["answer"].startswith("200 "),
        "down_cpu_s_gb": down["cpu_s_gb"],
        "up_cpu_s_gb": up["cpu_s_gb"],
        "down_peak_mb": down["peak_rss_mb"],
        "up_peak_mb": up["peak_rss_mb"],
    }


def t_idle(p, a):
    base = pss_kb(p)
    out = {}
    hs = []
    try:
        tot = 0
        for n in (1000, 3000, 5000, MORE_IDLE):
            q = subprocess.Popen(
                [
                    "taskset",
                    "-c",
                    LOAD_CPU,
                    TOOLS + "/olgen",
                    "idle",
                    "--target",
                    f"127.0.0.1:{PORT}",
                    "--conns",
                    str(n),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            hs.append(q)
            ok = q.stdout.readline().strip()
            tot += n
            if ok != "ready":
                raise RuntimeError(f"idle: {ok!r} at {tot}")
            time.sleep(2.0)
            out[tot] = pss_kb(p)
        began = time.monotonic()
        with socket.create_connection(("127.0.0.1", PORT), 5) as s:
            s.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            serves = s.makefile("rb").read().startswith(b"HTTP/1.1 200")
        served_ms = (time.monotonic() - began) * 1e3
    finally:
        for q in hs:
            q.stdin.close()
        closed = sum(int((q.stdout.readline().split() or [0, 0])[1]) for q in hs)
        for q in hs:
            q.wait()
    ks = sorted(out)
    return {
        "base_mb": base / 1024,
        "rss_kb": out,
        "kb_conn": (out[ks[-1]] - out[ks[0]]) / (ks[-1] - ks[0]),
        "total_mb": out[ks[-1]] / 1024,
        "serves_another": serves,
        "another_ms": served_ms,
        "closed": closed,
    }


IDLE_TLS = r"""
import socket,ssl,sys
n=int(sys.argv[2]);c=ssl.create_default_context();c.check_hostname=False;c.verify_mode=ssl.CERT_NONE;c.set_alpn_protocols(["http/1.1"]);k=[]
for i in range(n):
    s=c.wrap_socket(socket.create_connection(("127.0.0.1",int(sys.argv[1])),10),server_hostname="localhost");s.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    b=b""
    while b.count(b"x")<128:
        r=s.recv(4096)
        if not r: sys.exit("eof")
        b+=r
    k.append(s)
print("ready",flush=True);sys.stdin.read()
"""


def t_idletls(p, a):
    out, hs = {0: pss_kb(p)}, []
    try:
        for tot in (500, 2500):
            n = tot - max(out)
            q = subprocess.Popen(
                ["taskset", "-c", LOAD_CPU, sys.executable, "-c", IDLE_TLS, str(TLS_PORT), str(n)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            hs.append(q)
            if q.stdout.readline().strip() != "ready":
                raise RuntimeError("idle tls")
            time.sleep(2)
            out[tot] = pss_kb(p)
    finally:
        for q in hs:
            q.stdin.close()
            q.wait()
    return {"rss_kb": out, "kb_conn": (out[2500] - out[500]) / 2000}


TESTS = dict(
    keepalive=t_keepalive,
    keepalive1=t_keepalive1,
    rate=t_rate,
    half=t_half,
    newconn=t_newconn,
    tls=t_tls,
    tlshs=t_tlshs,
    tlsresume=t_tlsresume,
    h2=t_h2,
    body1m=t_body1m,
    body100m=t_body100m,
    upload10m=t_upload10m,
    stream10g=t_stream10g,
    idle=t_idle,
    websocket=t_websocket,
    idletls=t_idletls,
)
NEED = dict(tls="tls", tlsresume="tls", tlshs="tls", idletls="tls", h2="h2")

# ---------------------------------------------------------------- failover
SCEN = dict(
    kill9="kill -9 the primary",
    stop="SIGSTOP the primary (hung, no RST)",
    s500="primary answers 500",
    s503="primary answers 503",
    refuse="primary's port refuses, its connections are closed",
    blackhole="packets to and from the primary vanish",
    cut="primary closes after the head of each response",
)
BREAK = dict(
    stop=signal.SIGSTOP, s500=signal.SIGUSR1, s503=signal.SIGUSR2, refuse=signal.SIGWINCH, cut=signal.SIGALRM
)


def drop_packets(port, on):
    """in our own network namespace; False where there is no iptables or no right to it"""
    for flag in ("--dport", "--sport"):
        rule = ["-p", "tcp", flag, str(port), "-j", "DROP"]
        if subprocess.run(["iptables", "-w", "-A" if on else "-D", "INPUT", *rule], capture_output=True).returncode:
            return False
    return True



def failover(ctx, peers, name, scen, mode, a):
    """a.rate rps open loop, 30 % POST, 20 ms service time; breaks at +6 s, heals at +13 s, ends at +20 s"""
    logs = [ctx.work + f"/posts.{i}" for i in "pb"]
    for l in logs:
        if os.path.exists(l):
            os.unlink(l)

    def bp():
        return backend(B1_PORT, "p", "--delay-ms", "20", "--log", logs[0])

    b1 = bp()
    b2 = backend(B2_PORT, "b", "--delay-ms", "20", "--log", logs[1])
    px = None
    agg = mode == "all"
    extra = dict(
        NON_IDEMPOTENT="non_idempotent" if agg else "",
        RETRY_ALL="1" if agg else "",
        RETRY_ON="" if agg else "http-request disable-l7-retry if METH_POST",
        ENVOY_RETRY_ON="5xx,reset,connect-failure,refused-stream"
        if agg
        else "connect-failure,refused-stream,reset-before-request",
        CADDY_RETRY="buffer_requests\n\t\tlb_retry_match {\n\t\t\tmethod GET POST\n\t\t}" if agg else "",
    )
    try:
        px = start(ctx, peers, name, "failover", extra)
        time.sleep(2)
        csv = ctx.work + "/ol.csv"
        lg = subprocess.Popen(
            [
                "taskset",
                "-c",
                LOAD_CPU,
                TOOLS + "/olgen",
                "open",
                "--target",
                f"127.0.0.1:{PORT}",
                "--rate",
                str(a.rate),
                "--dur",
                "20",
                "--post-pct",
                "30",
                "--conns",
                "64",
                "--timeout-ms",
                "10000",
                "--csv",
                csv,
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        t0 = time.monotonic()
        time.sleep(6.2)
        bpid = [p for p in tree(b1.pid)]
        k0 = time.monotonic_ns()
        if scen == "kill9":
            b1.kill()
        elif scen == "blackhole":
            assert drop_packets(B1_PORT, True), "no iptables, or not in a network namespace of our own"
        else:
            for p in bpid:
                os.kill(p, BREAK[scen])
        time.sleep(max(0, t0 + 13.2 - time.monotonic()))
        k1 = time.monotonic_ns()
        if scen == "kill9":
            b1 = bp()
        elif scen == "blackhole":
            drop_packets(B1_PORT, False)
        else:
            for p in bpid:
                os.kill(p, signal.SIGCONT if scen == "stop" else signal.SIGHUP)
        lg.communicate()
    finally:
        for q in (px, b1, b2):
            if q:
                q.kill()
    rows = []
    for l in open(csv):
        i, k, sc, se, en, st, bk, er = l.rstrip("\n").split(",")
        rows.append((k, int(sc), int(en), int(st), bk, er))
    good = lambda r: 200 <= r[3] < 300
    bad = [r for r in rows if not good(r)]
    okend = sorted(r[2] for r in rows if good(r))
    gaps = [(b - a_, a_) for a_, b in zip(okend, okend[1:])]
    first = [r[2] for r in rows if good(r) and r[1] >= k0]
    lat = sorted((r[2] - r[1]) / 1e6 for r in rows if good(r) and k0 - 5e7 <= r[1] < k0 + 5e9)
    slow = [r for r in rows if good(r) and r[2] - r[1] > 250e6]
    trouble = [r[1] for r in rows if (not good(r) or r[2] - r[1] > 250e6) and k0 - 1e9 < r[1] < k1]
    ids = [set(open(l).read().split()) if os.path.exists(l) else set() for l in logs]
    kinds = collections.Counter((r[5] or str(r[3])) for r in bad)
    return dict(
        total=len(rows),
        failed=len(bad),
        failed_get=sum(r[0] == "G" for r in bad),
        failed_post=sum(r[0] == "P" for r in bad),
        kinds=dict(kinds),
        failed_before=sum(r[2] < k0 for r in bad),
        failed_break=sum(k0 <= r[2] < k1 for r in bad),
        failed_heal=sum(r[2] >= k1 for r in bad),
        first_ok_ms=(min(first) - k0) / 1e6 if first else None,
        gap_ms=max(gaps)[0] / 1e6,
        slow250=len(slow),
        maxlat_ms=max((r[2] - r[1]) / 1e6 for r in rows),
        p99_after_ms=lat[int(len(lat) * 0.99)] if lat else None,
        trouble_ms=(max(trouble) - k0) / 1e6 if trouble else 0,
        backup_share_broken=round(
            sum(r[4] == "b" for r in rows if k0 < r[1] < k1) / max(1, sum(k0 < r[1] < k1 for r in rows)), 3
        ),
        primary_back=any(r[4] == "p" and r[1] > k1 + 3e9 for r in rows),
        double_posts=len(ids[0] & ids[1]),
    )


# ---------------------------------------------------------------- main
def load_peers(own):
    p = json.load(open(HERE + "/peers.json"))
    for f in own or []:
        p.update(json.load(open(f)))
    return p


def installed(name, peer):
    """Whether the peer's program is here; says so if it is not."""
    program = subst(shlex.split(peer["perf"]["cmd"])[0], {"ROOT": ROOT, "HERE": HERE})
    if shutil.which(program):
        return True
    print(f"skipped: {name}: {program} is not installed", file=sys.stderr)
    return False


def run(a):
    peers = load_peers(a.own)
    names = [x for x in a.peers.split(",") if x] if a.peers else list(peers)
    names = [n for n in names if n == "direct" or installed(n, peers[n])]
    tests = a.tests.split(",")
    nofile()
    if os.geteuid() == 0 and not a.no_netns:
        print("netns:", netns(), file=sys.stderr)
    os.sched_setaffinity(0, {int(LOAD_CPU)})
    work = a.work or tempfile.mkdtemp(prefix="proxybench.")
    os.makedirs(work, exist_ok=True)
    ctx = Ctx(work)
    out = open(a.out, "a")
    for r in range(a.runs):
        for t in tests:
            for n in names:
                if n != "direct" and NEED.get(t) and NEED[t] not in peers[n].get("caps", []):
                    continue
                if t.startswith("failover"):
                    # failover:SCEN:MODE   MODE all (also POST is replayed) | safe
                    _, sc, mode = t.split(":")
                    if n == "direct" or "failover" not in peers[n]:
                        continue
                    try:
                        res = failover(ctx, peers, n, sc, mode, a)
                    except Exception as e:
                        res = {"error": repr(e)}
                else:
                    b = px = None
                    try:
                        global H
                        b = (echo if t == "websocket" else backend)(PORT if n == "direct" else B1_PORT)
                        if n == "direct":
                            if NEED.get(t):
                                continue
                            res = TESTS[t](tree(b.pid), a)
                        else:
                            px = start(ctx, peers, n, "perf")
                            res = TESTS[t](tree(px.pid), a)
                    except Exception as e:
                        res = {"error": repr(e)}
                    finally:
                        if px:
                            px.kill()
                        if b:
                            b.kill()
                res.update(run=r, test=t, peer=n, load1=os.getloadavg()[0])
                out.write(json.dumps(res) + "\n")
                out.flush()
                k = [
                    x
                    for x in (
                        "error",
                        "rps",
                        "cpu_us_req",
                        "p50_us",
                        "p99_us",
                        "p999_us",
                        "gbps",
                        "cpu_s_gb",
                        "peak_rss_mb",
                        "kb_conn",
                        "failed",
                        "kinds",
                        "first_ok_ms",
                        "gap_ms",
                        "slow250",
                        "p99_after_ms",
                        "trouble_ms",
                        "double_posts",
                        "util",
                        "err_read",
                        "err_status",
                        "down_ok",
                        "up_ok",
                        "down_peak_mb",
                        "up_peak_mb",
                        "serves_another",
                    )
                    if x in res
                ]
                print(
                    f"{r} {t:18} {n:16}",
                    " ".join(f"{x}={res[x]:.4g}" if isinstance(res[x], float) else f"{x}={res[x]}" for x in k),
                    flush=True,
                )
    if not a.work:
        shutil.rmtree(work, ignore_errors=True)


COLS = {
    "keepalive": ["rps", "cpu_us_req", "p50_us", "p99_us", "p999_us", "util", "sys_share"],
    "rate": ["cpu_us_req", "p50_us", "p90_us", "p99_us", "p999_us"],
    "h2": ["rps", "cpu_us_req", "util", "sys_share"],
    "tlshs": ["rps", "cpu_us_req", "util"],
    "body1m": ["gbps", "cpu_s_gb", "peak_rss_mb", "util"],
    "body100m": ["gbps", "cpu_s_gb", "peak_rss_mb", "util"],
    "upload10m": ["gbps", "cpu_s_gb", "peak_rss_mb", "util"],
    "websocket": ["cpu_us_req", "p50_us", "p90_us", "p99_us", "failed", "util"],
    "idle": ["base_mb", "kb_conn", "total_mb_9k"],
    "idle": ["base_mb", "kb_conn", "total_mb", "serves_another", "another_ms"],
    "stream10g": ["down_ok", "up_ok", "down_cpu_s_gb", "up_cpu_s_gb", "down_peak_mb", "up_peak_mb"],
    "half": ["cpu_us_req", "p50_us", "p90_us", "p99_us", "p999_us", "util"],
    "idletls": ["kb_conn"],
    "failover": [
        "failed",
        "failed_get",
        "failed_post",
        "failed_heal",
        "first_ok_ms",
        "gap_ms",
        "slow250",
        "p99_after_ms",
        "trouble_ms",
        "double_posts",
    ],
}


# What is compared, where a test has it: less is better.
MERIT = ["cpu_us_req", "cpu_s_gb", "kb_conn", "failed", "down_cpu_s_gb", "up_cpu_s_gb"]
OURS = "hotwarm"


def report(a):
    rows = [json.loads(l) for f in a.files for l in open(f)]
    by = collections.OrderedDict()
    for r in rows:
        by.setdefault(r["test"], collections.OrderedDict()).setdefault(r["peer"], []).append(r)
    f = lambda x: f"{x:.0f}" if abs(x) >= 1000 else f"{x:.3g}"
    for t, ps in by.items():
        cols = COLS.get(t.split(":")[0], COLS["keepalive"])
        print(f"\n### {t}\n\n| peer | n | " + " | ".join(cols) + " |\n|---|---|" + "---|" * len(cols))
        medians = {}
        for p, rs in ps.items():
            ok = [r for r in rs if "error" not in r]
            cs = []
            for c in cols:
                v = [r[c] for r in ok if isinstance(r.get(c), (int, float))]
                cs.append(
                    "–"
                    if not v
                    else f"**{f(statistics.median(v))}** ({f(min(v))}–{f(max(v))})"
                    if min(v) != max(v)
                    else f"**{f(v[0])}**"
                )
            merit = next((c for c in MERIT if c in cols), None)
            v = [r[merit] for r in ok if isinstance(r.get(merit), (int, float))] if merit else []
            if v:
                medians[p] = statistics.median(v)
            err = f" err:{len(rs) - len(ok)}" if len(ok) < len(rs) else ""
            print(f"| {p} | {len(ok)}{err} | " + " | ".join(cs) + " |")
        ours, theirs = medians.get(OURS), {p: m for p, m in medians.items() if p not in (OURS, "direct")}
        if ours is not None and theirs:
            best = min(theirs, key=theirs.get)
            ratio = ours / theirs[best] if theirs[best] else float("nan")
            print(f"\n{OURS} / {best}, the best of the others, in {merit}: **{ratio:.2f}**")


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sp = ap.add_subparsers(dest="c", required=True)
    r = sp.add_parser("run")
    r.add_argument("--peers")
    r.add_argument("--own", action="append")
    r.add_argument("--tests", default="keepalive,rate,newconn,tls,tlshs,h2,body1m,body100m,upload10m,idle")
    r.add_argument("--runs", type=int, default=3)
    r.add_argument("--dur", type=float, default=5)
    r.add_argument("--out", default="results.jsonl")
    r.add_argument("--rate", type=int, default=1000, help="requests/s of the failover tests")
    r.add_argument("--work")
    r.add_argument("--no-netns", action="store_true")
    q = sp.add_parser("report")
    q.add_argument("files", nargs="+")
    sp.add_parser("list")
    a = ap.parse_args()
    if a.c == "run":
        a.dur = int(a.dur) if a.dur == int(a.dur) else a.dur
        run(a)
    elif a.c == "report":
        report(a)
    else:
        print(
            "peers:",
            ", ".join(load_peers(None)),
            "\ntests:",
            ", ".join(TESTS),
            "\nfailover tests:",
            ", ".join(f"failover:{s}:{m}" for s in SCEN for m in ("safe", "all")),
        )


if __name__ == "__main__":
    main()
