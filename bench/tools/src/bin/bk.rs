//! bk: a deliberately small single-threaded epoll HTTP/1.1 backend (Linux, libc only).
//!
//!   bk --listen 127.0.0.1:9001 [--name p] [--body 128] [--delay-ms 0] [--log FILE]
//!
//! GET /            -> 200 with --body bytes
//! GET /b/N         -> 200 with N bytes
//! anything + body  -> body is read completely, then answered (Content-Length and chunked)
//! SIGUSR1 -> answer everything with 500, SIGUSR2 -> 503, SIGALRM -> close after the head of each response,
//! SIGWINCH -> close every connection and listen no more, SIGHUP -> all is well again
//! --log appends "<x-id>\n" for each completely received POST (to find doubly executed POSTs)
//! --idle-close-ms N: close connections idle for N ms (to provoke the keepalive race)
use std::collections::VecDeque;
use std::io::Write;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

static STATUS: AtomicU32 = AtomicU32::new(200);
const CUT: u32 = 1;
const REFUSE: u32 = 2;
extern "C" fn on_sig(s: i32) {
    STATUS.store(
        match s {
            libc::SIGUSR1 => 500,
            libc::SIGUSR2 => 503,
            libc::SIGALRM => CUT,
            libc::SIGWINCH => REFUSE,
            _ => 200,
        },
        Relaxed,
    );
}

#[derive(PartialEq, Clone, Copy)]
enum Rd {
    Head,
    Len(u64),
    ChunkSize,
    ChunkData(u64),
    ChunkCrlf,
    Trailer,
    Waiting,
}

struct Conn {
    fd: i32,
    gen: u32,
    buf: Vec<u8>,
    rd: Rd,
    out: Vec<u8>,
    off: usize,
    bulk: u64,
    close: bool,
    wantw: bool,
    resp_bytes: u64,
    post: bool,
    head: bool,
    xid: Vec<u8>,
    last: u64,
}

struct Cfg {
    name: String,
    body: usize,
    delay_ns: u64,
    log: Option<std::fs::File>,
    bulk: Vec<u8>,
    idle_close: u64,
}

fn now() -> u64 {
    let mut t = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut t) };
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}
fn find(h: &[u8], n: &[u8]) -> Option<usize> {
    unsafe {
        let p = libc::memmem(h.as_ptr() as _, h.len(), n.as_ptr() as _, n.len());
        if p.is_null() {
            None
        } else {
            Some(p as usize - h.as_ptr() as usize)
        }
    }
}

enum Next {
    NeedMore,
    Reply,
}

/// consumes from `b` starting at *pos; returns whether a whole request is in.
fn step(c: &mut Conn, b: &[u8], pos: &mut usize, cfg: &mut Cfg) -> Next {
    loop {
        match c.rd {
            Rd::Waiting => return Next::NeedMore,
            Rd::Head => {
                let r = &b[*pos..];
                let Some(e) = find(r, b"\r\n\r\n") else {
                    return Next::NeedMore;
                };
                let h = &r[..e + 2];
                *pos += e + 4;
                let l0 = find(h, b"\r\n").unwrap();
                let line = &h[..l0];
                let mut it = line.split(|x| *x == b' ');
                let m = it.next().unwrap_or(b"");
                let path = it.next().unwrap_or(b"/");
                let v10 = line.ends_with(b"1.0");
                c.post = m == b"POST" || m == b"PUT";
                c.head = m == b"HEAD";
                c.resp_bytes = if path.starts_with(b"/b/") {
                    path[3..]
                        .iter()
                        .take_while(|x| x.is_ascii_digit())
                        .fold(0, |a, x| a * 10 + (*x - b'0') as u64)
                } else {
                    cfg.body as u64
                };
                c.close = v10;
                c.xid.clear();
                let (mut cl, mut ch) = (0u64, false);
                let mut p = l0 + 2;
                while p < h.len() {
                    let e = p + find(&h[p..], b"\r\n").unwrap();
                    let l = &h[p..e];
                    p = e + 2;
                    match l.first().map(|x| x | 32) {
                        Some(b'c') => {
                            if l.len() > 15 && l[..15].eq_ignore_ascii_case(b"content-length:") {
                                cl = l[15..]
                                    .iter()
                                    .filter(|x| x.is_ascii_digit())
                                    .fold(0, |a, x| a * 10 + (*x - b'0') as u64);
                            } else if l.len() > 11 && l[..11].eq_ignore_ascii_case(b"connection:") {
                                let v = l[11..].to_ascii_lowercase();
                                if find(&v, b"close").is_some() {
                                    c.close = true
                                }
                                if find(&v, b"keep-alive").is_some() {
                                    c.close = false
                                }
                            }
                        }
                        Some(b't')
                            if l.len() > 18
                                && l[..18].eq_ignore_ascii_case(b"transfer-encoding:") =>
                        {
                            ch = find(&l.to_ascii_lowercase(), b"chunked").is_some()
                        }
                        Some(b'x') if l.len() > 5 && l[..5].eq_ignore_ascii_case(b"x-id:") => {
                            c.xid.extend_from_slice(l[5..].trim_ascii())
                        }
                        _ => {}
                    }
                }
                c.rd = if ch {
                    Rd::ChunkSize
                } else if cl > 0 {
                    Rd::Len(cl)
                } else {
                    return done(c, cfg);
                };
            }
            Rd::Len(n) => {
                let a = (b.len() - *pos) as u64;
                let t = a.min(n);
                *pos += t as usize;
                if t == n {
                    return done(c, cfg);
                }
                c.rd = Rd::Len(n - t);
                return Next::NeedMore;
            }
            Rd::ChunkSize => {
                let r = &b[*pos..];
                let Some(e) = find(r, b"\r\n") else {
                    return Next::NeedMore;
                };
                let mut n = 0u64;
                for x in &r[..e] {
                    match (*x as char).to_digit(16) {
                        Some(d) => n = n * 16 + d as u64,
                        None => break,
                    }
                }
                *pos += e + 2;
                c.rd = if n == 0 {
                    Rd::Trailer
                } else {
                    Rd::ChunkData(n)
                };
            }
            Rd::ChunkData(n) => {
                let t = ((b.len() - *pos) as u64).min(n);
                *pos += t as usize;
                if t < n {
                    c.rd = Rd::ChunkData(n - t);
                    return Next::NeedMore;
                }
                c.rd = Rd::ChunkCrlf;
            }
            Rd::ChunkCrlf => {
                if b.len() - *pos < 2 {
                    return Next::NeedMore;
                }
                *pos += 2;
                c.rd = Rd::ChunkSize
            }
            Rd::Trailer => {
                let r = &b[*pos..];
                let Some(e) = find(r, b"\r\n") else {
                    return Next::NeedMore;
                };
                *pos += e + 2;
                if e == 0 {
                    return done(c, cfg);
                }
            }
        }
    }
}
fn done(c: &mut Conn, cfg: &mut Cfg) -> Next {
    c.rd = Rd::Waiting;
    if c.post {
        if let Some(f) = cfg.log.as_mut() {
            let mut x = c.xid.clone();
            x.push(b'\n');
            let _ = f.write_all(&x);
        }
    }
    Next::Reply
}
fn reply(c: &mut Conn, cfg: &Cfg) {
    c.rd = Rd::Head;
    let st = STATUS.load(Relaxed);
    let (line, n) = match st {
        500 => ("500 Internal Server Error", 5),
        503 => ("503 Service Unavailable", 5),
        _ => ("200 OK", c.resp_bytes),
    };
    let _ = write!(
        c.out,
        "HTTP/1.1 {line}\r\nServer: bk\r\nDate: Fri, 20 Nov 2026 02:22:00 GMT\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {n}\r\nCache-Control: no-store\r\nETag: \"5f3c-61a\"\r\nX-Bk: {}\r\n{}\r\n",
        cfg.name,
        if c.close { "Connection: close\r\n" } else { "" }
    );
    if c.head {
        return;
    }
    if st == CUT {
        c.close = true;
        return;
    }
    if n <= 16384 {
        c.out.extend_from_slice(&cfg.bulk[..n as usize])
    } else {
        c.bulk = n
    }
}

/// returns false if the connection is to be dropped
fn flush(c: &mut Conn, cfg: &Cfg, ep: i32) -> bool {
    unsafe {
        let mut blocked = false;
        while c.off < c.out.len() || c.bulk > 0 {
            let h = &c.out[c.off..];
            let n = if c.bulk > 0 {
                let bl = (c.bulk as usize).min(cfg.bulk.len());
                let iov = [
                    libc::iovec {
                        iov_base: h.as_ptr() as _,
                        iov_len: h.len(),
                    },
                    libc::iovec {
                        iov_base: cfg.bulk.as_ptr() as _,
                        iov_len: bl,
                    },
                ];
                libc::writev(c.fd, iov.as_ptr(), 2)
            } else {
                libc::send(c.fd, h.as_ptr() as _, h.len(), libc::MSG_NOSIGNAL)
            };
            if n < 0 {
                if *libc::__errno_location() == libc::EAGAIN {
                    blocked = true;
                    break;
                }
                return false;
            }
            let n = n as usize;
            let hl = h.len().min(n);
            c.off += hl;
            c.bulk -= (n - hl) as u64;
        }
        if !blocked {
            c.out.clear();
            c.off = 0;
        }
        if blocked != c.wantw {
            c.wantw = blocked;
            let mut ev = libc::epoll_event {
                events: (libc::EPOLLIN | if blocked { libc::EPOLLOUT } else { 0 }) as u32,
                u64: (c.fd as u64) | (c.gen as u64) << 32,
            };
            libc::epoll_ctl(ep, libc::EPOLL_CTL_MOD, c.fd, &mut ev);
        }
        blocked || !c.close || c.rd == Rd::Waiting
    }
}

/// A listening socket, watched by `ep`.
unsafe fn open(listen: std::net::SocketAddr, ep: i32) -> i32 {
    let ls = libc::socket(
        libc::AF_INET,
        libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC,
        0,
    );
    let one = 1i32;
    libc::setsockopt(
        ls,
        libc::SOL_SOCKET,
        libc::SO_REUSEADDR,
        &one as *const _ as _,
        4,
    );
    let std::net::SocketAddr::V4(v4) = listen else {
        panic!("v4 only")
    };
    let sa = libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: v4.port().to_be(),
        sin_addr: libc::in_addr {
            s_addr: u32::from_ne_bytes(v4.ip().octets()),
        },
        sin_zero: [0; 8],
    };
    if libc::bind(ls, &sa as *const _ as _, 16) != 0 || libc::listen(ls, 4096) != 0 {
        eprintln!("bind failed");
        std::process::exit(1)
    }
    let mut ev = libc::epoll_event {
        events: libc::EPOLLIN as u32,
        u64: u64::MAX,
    };
    libc::epoll_ctl(ep, libc::EPOLL_CTL_ADD, ls, &mut ev);
    ls
}

fn main() {
    let a: Vec<String> = std::env::args().collect();
    let g = |k: &str| a.iter().position(|x| x == k).map(|i| a[i + 1].clone());
    let listen: std::net::SocketAddr = g("--listen").expect("--listen").parse().unwrap();
    let mut cfg = Cfg {
        name: g("--name").unwrap_or("p".into()),
        body: g("--body").map_or(128, |x| x.parse().unwrap()),
        delay_ns: g("--delay-ms").map_or(0, |x| (x.parse::<f64>().unwrap() * 1e6) as u64),
        log: g("--log").map(|f| {
            std::fs::OpenOptions::new()
                .append(true)
                .create(true)
                .open(f)
                .unwrap()
        }),
        bulk: vec![b'x'; 256 * 1024],
        idle_close: g("--idle-close-ms").map_or(0, |x| x.parse::<u64>().unwrap() * 1_000_000),
    };
    unsafe {
        for s in [
            libc::SIGUSR1,
            libc::SIGUSR2,
            libc::SIGALRM,
            libc::SIGWINCH,
            libc::SIGHUP,
        ] {
            libc::signal(s, on_sig as *const () as usize);
        }
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
        let ep = libc::epoll_create1(libc::EPOLL_CLOEXEC);
        let one = 1i32;
        let mut ls = open(listen, ep);
        let mut conns: Vec<Option<Box<Conn>>> = Vec::new();
        let mut due: VecDeque<(u64, i32, u32)> = VecDeque::new();
        let mut rb = vec![0u8; 256 * 1024];
        let mut gen = 0u32;
        let mut evs: Vec<libc::epoll_event> = vec![std::mem::zeroed(); 512];
        loop {
            let tmo = match due.front() {
                Some(d) => {
                    let n = now();
                    if d.0 <= n {
                        0
                    } else {
                        ((d.0 - n + 999_999) / 1_000_000) as i32
                    }
                }
                None => {
                    if cfg.idle_close > 0 {
                        20
                    } else {
                        -1
                    }
                }
            };
            let n = libc::epoll_wait(ep, evs.as_mut_ptr(), 512, tmo);
            let mut dead: Vec<i32> = vec![];
            let refuses = STATUS.load(Relaxed) == REFUSE;
            if refuses && ls >= 0 {
                libc::close(ls);
                ls = -1;
                dead.extend(conns.iter().flatten().map(|c| c.fd));
            } else if !refuses && ls < 0 {
                ls = open(listen, ep);
            }
            for i in 0..n.max(0) as usize {
                let d = evs[i].u64;
                if d == u64::MAX {
                    loop {
                        let fd = libc::accept4(
                            ls,
                            std::ptr::null_mut(),
                            std::ptr::null_mut(),
                            libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC,
                        );
                        if fd < 0 {
                            break;
                        }
                        libc::setsockopt(
                            fd,
                            libc::IPPROTO_TCP,
                            libc::TCP_NODELAY,
                            &one as *const _ as _,
                            4,
                        );
                        gen = gen.wrapping_add(1);
                        if conns.len() <= fd as usize {
                            conns.resize_with(fd as usize + 1, || None)
                        }
                        conns[fd as usize] = Some(Box::new(Conn {
                            fd,
                            gen,
                            buf: vec![],
                            rd: Rd::Head,
                            out: vec![],
                            off: 0,
                            bulk: 0,
                            close: false,
                            wantw: false,
                            resp_bytes: 0,
                            post: false,
                            head: false,
                            xid: vec![],
                            last: if cfg.idle_close > 0 { now() } else { 0 },
                        }));
                        let mut e = libc::epoll_event {
                            events: libc::EPOLLIN as u32,
                            u64: fd as u64 | (gen as u64) << 32,
                        };
                        libc::epoll_ctl(ep, libc::EPOLL_CTL_ADD, fd, &mut e);
                    }
                    continue;
                }
                let fd = (d & 0xffff_ffff) as i32;
                let Some(c) = conns[fd as usize]
                    .as_mut()
                    .filter(|c| c.gen == (d >> 32) as u32)
                else {
                    continue;
                };
                let e = evs[i].events as i32;
                let mut ok = true;
                if e & (libc::EPOLLIN | libc::EPOLLHUP | libc::EPOLLERR) != 0 {
                    let r = libc::recv(fd, rb.as_mut_ptr() as _, rb.len(), 0);
                    if r == 0 {
                        ok = false
                    } else if r < 0 {
                        if *libc::__errno_location() != libc::EAGAIN {
                            ok = false
                        }
                    } else {
                        if cfg.idle_close > 0 {
                            c.last = now()
                        }
                        ok = feed(c, &rb[..r as usize], &mut cfg, &mut due);
                    }
                }
                if ok && (c.out.len() > c.off || c.bulk > 0) {
                    ok = flush(c, &cfg, ep)
                }
                if !ok {
                    dead.push(fd)
                }
            }
            if !due.is_empty() {
                let t = now();
                while due.front().map_or(false, |d| d.0 <= t) {
                    let (_, fd, g) = due.pop_front().unwrap();
                    let Some(c) = conns[fd as usize].as_mut().filter(|c| c.gen == g) else {
                        continue;
                    };
                    reply(c, &cfg);
                    let left = std::mem::take(&mut c.buf);
                    let mut ok = feed(c, &left, &mut cfg, &mut due);
                    if ok {
                        ok = flush(c, &cfg, ep)
                    }
                    if !ok {
                        dead.push(fd)
                    }
                }
            }
            if cfg.idle_close > 0 {
                let t = now();
                for c in conns.iter().flatten() {
                    if c.rd == Rd::Head && c.buf.is_empty() && t - c.last > cfg.idle_close {
                        dead.push(c.fd)
                    }
                }
            }
            for fd in dead {
                if conns[fd as usize].take().is_some() {
                    libc::close(fd);
                }
            }
        }
    }
}

fn feed(c: &mut Conn, data: &[u8], cfg: &mut Cfg, due: &mut VecDeque<(u64, i32, u32)>) -> bool {
    let joined;
    let b: &[u8] = if c.buf.is_empty() {
        data
    } else {
        c.buf.extend_from_slice(data);
        joined = std::mem::take(&mut c.buf);
        &joined
    };
    let mut pos = 0;
    while pos < b.len() {
        match step(c, b, &mut pos, cfg) {
            Next::NeedMore => break,
            Next::Reply => {
                if cfg.delay_ns > 0 {
                    due.push_back((now() + cfg.delay_ns, c.fd, c.gen));
                    break;
                }
                reply(c, cfg);
                if c.bulk > 0 {
                    break;
                }
            }
        }
    }
    if pos < b.len() {
        c.buf = b[pos..].to_vec()
    }
    true
}
