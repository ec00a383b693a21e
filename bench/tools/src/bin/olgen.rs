//! olgen: open-loop HTTP/1.1 load generator and idle-connection holder (Linux, libc only).
//!
//!   olgen open --target 127.0.0.1:8080 --rate 500 --dur 20 [--conns 32] [--post-pct 30]
//!         [--post-bytes 1024] [--timeout-ms 10000] [--fresh] [--csv FILE] [--path /]
//!   olgen idle --target 127.0.0.1:8080 --conns 1000        (prints "ready", holds until stdin EOF)
//!
//! Requests are sent on a fixed schedule whatever the answers do (no coordinated omission); a free
//! keepalive connection is used, else a new one is opened. No retries by the generator. CSV columns:
//! i,kind(G|P),sched_ns,sent_ns,end_ns,status,backend,err   with CLOCK_MONOTONIC nanoseconds.
use std::io::{Read, Write};
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
struct Rec {
    kind: u8,
    sched: u64,
    sent: u64,
    end: u64,
    status: u16,
    backend: u8,
    err: &'static str,
}
struct Conn {
    fd: i32,
    gen: u32,
    connecting: bool,
    req: Option<usize>,
    out: Vec<u8>,
    off: usize,
    buf: Vec<u8>,
    ver: u32,
}

/// Some((status, backend, close)) when the whole response is in buf
fn parse(b: &[u8]) -> Option<(u16, u8, bool)> {
    let e = find(b, b"\r\n\r\n")?;
    let h = &b[..e + 2];
    let st = std::str::from_utf8(h.get(9..12)?).ok()?.parse().ok()?;
    let (mut cl, mut ch, mut close, mut bk) = (None, false, h.starts_with(b"HTTP/1.0"), b'-');
    for l in h.split(|x| *x == b'\n').skip(1) {
        let Some(p) = l.iter().position(|x| *x == b':') else {
            continue;
        };
        let (k, v) = (l[..p].to_ascii_lowercase(), l[p + 1..].trim_ascii());
        match &k[..] {
            b"content-length" => {
                cl = std::str::from_utf8(v)
                    .ok()
                    .and_then(|x| x.parse::<usize>().ok())
            }
            b"transfer-encoding" => ch = true,
            b"connection" => close |= v.eq_ignore_ascii_case(b"close"),
            b"x-bk" => bk = v.first().copied().unwrap_or(b'-'),
            _ => {}
        }
    }
    let body = &b[e + 4..];
    if ch {
        if !(body.ends_with(b"0\r\n\r\n")) {
            return None;
        }
    } else if let Some(n) = cl {
        if body.len() < n {
            return None;
        }
    } else if st != 204 && st != 304 {
        return None;
    } // until close: handled at EOF
    Some((st, bk, close))
}
unsafe fn connect(t: &libc::sockaddr_in) -> Result<(i32, bool), ()> {
    let fd = libc::socket(
        libc::AF_INET,
        libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC,
        0,
    );
    if fd < 0 {
        return Err(());
    }
    let one = 1i32;
    libc::setsockopt(
        fd,
        libc::IPPROTO_TCP,
        libc::TCP_NODELAY,
        &one as *const _ as _,
        4,
    );
    if libc::connect(fd, t as *const _ as _, 16) == 0 {
        return Ok((fd, false));
    }
    if *libc::__errno_location() == libc::EINPROGRESS {
        return Ok((fd, true));
    }
    libc::close(fd);
    Err(())
}
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let g = |k: &str| {
        a.iter()
            .position(|x| x == k)
            .and_then(|i| a.get(i + 1).cloned())
    };
    let gn = |k: &str, d: f64| g(k).map_or(d, |x| x.parse::<f64>().unwrap());
    let std::net::SocketAddr::V4(v4) = g("--target").expect("--target").parse().unwrap() else {
        panic!()
    };
    let sa = libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: v4.port().to_be(),
        sin_addr: libc::in_addr {
            s_addr: u32::from_ne_bytes(v4.ip().octets()),
        },
        sin_zero: [0; 8],
    };
    unsafe {
        let mut rl = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut rl);
        rl.rlim_cur = rl.rlim_max;
        libc::setrlimit(libc::RLIMIT_NOFILE, &rl);
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
        libc::prctl(libc::PR_SET_TIMERSLACK, 1000u64);
    }
    match a.get(1).map(|x| x.as_str()) {
        Some("idle") => idle(&sa, gn("--conns", 1000.) as usize),
        Some("open") => open(&sa, &g, &gn, a.iter().any(|x| x == "--fresh")),
        _ => panic!("open|idle"),
    }
}
fn idle(sa: &libc::sockaddr_in, n: usize) {
    let mut ss = Vec::new();
    let addr: std::net::SocketAddr = (
        std::net::Ipv4Addr::from(u32::from_be(sa.sin_addr.s_addr)),
        u16::from_be(sa.sin_port),
    )
        .into();
    for i in 0..n {
        let mut s = std::net::TcpStream::connect(addr).expect("connect");
        s.set_read_timeout(Some(std::time::Duration::from_secs(10)))
            .unwrap();
        s.write_all(
            b"GET / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: olgen/1\r\nAccept: */*\r\n\r\n",
        )
        .unwrap();
        let mut b = vec![0u8; 4096];
        let mut k = 0;
        loop {
            let r = s.read(&mut b[k..]).expect("read");
            if r == 0 {
                panic!("eof at {i}")
            }
            k += r;
            if let Some((st, _, c)) = parse(&b[..k]) {
                assert!(st == 200 && !c, "status {st} close {c}");
                break;
            }
        }
        ss.push(s);
    }
    println!("ready");
    std::io::stdout().flush().unwrap();
    let mut x = [0u8; 1];
    let _ = std::io::stdin().read(&mut x);
    // how many were closed meanwhile
    let mut closed = 0;
    for s in &mut ss {
        s.set_nonblocking(true).unwrap();
        match s.read(&mut x) {
            Ok(0) => closed += 1,
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
            _ => closed += 1,
        }
    }
    println!("closed {closed}");
}
fn open(
    sa: &libc::sockaddr_in,
    g: &dyn Fn(&str) -> Option<String>,
    gn: &dyn Fn(&str, f64) -> f64,
    fresh: bool,
) {
    let (rate, dur, pct, pb, tmo) = (
        gn("--rate", 500.),
        gn("--dur", 10.),
        gn("--post-pct", 0.) as u64,
        gn("--post-bytes", 1024.) as usize,
        (gn("--timeout-ms", 10000.) * 1e6) as u64,
    );
    let nconn = gn("--conns", 32.) as usize;
    let path = g("--path").unwrap_or("/".into());
    let total = (rate * dur) as usize;
    let mut recs: Vec<Rec> = Vec::with_capacity(total);
    let mut conns: Vec<Option<Conn>> = Vec::new();
    let mut free: Vec<(i32, u32)> = Vec::new();
    let body = vec![b'p'; pb];
    unsafe {
        let ep = libc::epoll_create1(libc::EPOLL_CLOEXEC);
        let mut gen = 0u32;
        let mk = |conns: &mut Vec<Option<Conn>>, gen: &mut u32| -> Option<i32> {
            let (fd, connecting) = connect(sa).ok()?;
            *gen += 1;
            if conns.len() <= fd as usize {
                conns.resize_with(fd as usize + 1, || None)
            }
            conns[fd as usize] = Some(Conn {
                fd,
                gen: *gen,
                connecting,
                req: None,
                out: vec![],
                off: 0,
                buf: vec![],
                ver: 0,
            });
            let mut e = libc::epoll_event {
                events: (libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLET | libc::EPOLLRDHUP) as u32,
                u64: fd as u64 | (*gen as u64) << 32,
            };
            libc::epoll_ctl(ep, libc::EPOLL_CTL_ADD, fd, &mut e);
            Some(fd)
        };
        if !fresh {
            for _ in 0..nconn {
                if let Some(fd) = mk(&mut conns, &mut gen) {
                    free.push((fd, gen))
                }
            }
        }
        let t0 = now() + 200_000_000;
        let iv = 1e9 / rate;
        let mut next = 0usize;
        let mut outstanding = 0usize;
        let mut oldest = 0usize;
        let mut evs: Vec<libc::epoll_event> = vec![std::mem::zeroed(); 512];
        let mut rng = 0x9e3779b97f4a7c15u64;
        let mut rb = vec![0u8; 65536];
        loop {
            let t = now();
            // send what is due
            while next < total && t0 + (next as f64 * iv) as u64 <= t {
                let sched = t0 + (next as f64 * iv) as u64;
                rng ^= rng << 13;
                rng ^= rng >> 7;
                rng ^= rng << 17;
                let kind = if rng % 100 < pct { b'P' } else { b'G' };
                let mut r = Rec {
                    kind,
                    sched,
                    sent: now(),
                    end: 0,
                    status: 0,
                    backend: b'-',
                    err: "",
                };
                let mut fd = -1;
                while let Some((f, gn)) = free.pop() {
                    if conns[f as usize].as_ref().map_or(false, |c| c.gen == gn) {
                        fd = f;
                        break;
                    }
                }
                if fd < 0 {
                    match mk(&mut conns, &mut gen) {
                        Some(f) => fd = f,
                        None => {
                            r.err = "socket";
                            r.end = now();
                            recs.push(r);
                            next += 1;
                            continue;
                        }
                    }
                }
                let c = conns[fd as usize].as_mut().unwrap();
                c.out.clear();
                c.off = 0;
                c.buf.clear();
                let conn = if fresh { "Connection: close\r\n" } else { "" };
                if kind == b'P' {
                    let _ = write!(
                        c.out,
                        "POST {path} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: olgen/1\r\nAccept: */*\r\nX-Id: {next}\r\n{conn}Content-Type: text/plain\r\nContent-Length: {pb}\r\n\r\n"
                    );
                    c.out.extend_from_slice(&body);
                } else {
                    let _ = write!(
                        c.out,
                        "GET {path} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: olgen/1\r\nAccept: */*\r\n{conn}\r\n"
                    );
                }
                c.req = Some(next);
                recs.push(r);
                next += 1;
                outstanding += 1;
                if !c.connecting {
                    if let Some(e) = pump(c) {
                        fail(&mut conns, fd, &mut recs, &mut outstanding, e)
                    }
                }
            }
            // timeouts
            while oldest < next && recs[oldest].end != 0 {
                oldest += 1
            }
            if oldest < next && t.saturating_sub(recs[oldest].sched) > tmo {
                let mut kill = vec![];
                for c in conns.iter().flatten() {
                    if let Some(r) = c.req {
                        if t.saturating_sub(recs[r].sched) > tmo {
                            kill.push(c.fd)
                        }
                    }
                }
                for fd in kill {
                    fail(&mut conns, fd, &mut recs, &mut outstanding, "timeout")
                }
            }
            if next == total && outstanding == 0 {
                break;
            }
            let wait: u64 = if next < total {
                (t0 + (next as f64 * iv) as u64).saturating_sub(now())
            } else {
                10_000_000
            };
            let ts = libc::timespec {
                tv_sec: (wait.min(50_000_000) / 1_000_000_000) as _,
                tv_nsec: (wait.min(50_000_000) % 1_000_000_000) as _,
            };
            let n = libc::syscall(
                441,
                ep,
                evs.as_mut_ptr(),
                512,
                &ts as *const _,
                std::ptr::null::<u8>(),
                8usize,
            );
            for i in 0..n.max(0) as usize {
                let d = evs[i].u64;
                let fd = (d & 0xffffffff) as i32;
                let e = evs[i].events as i32;
                let Some(c) = conns[fd as usize]
                    .as_mut()
                    .filter(|c| c.gen == (d >> 32) as u32)
                else {
                    continue;
                };
                if c.connecting && e & (libc::EPOLLOUT | libc::EPOLLERR | libc::EPOLLHUP) != 0 {
                    let (mut er, mut l) = (0i32, 4u32);
                    libc::getsockopt(
                        fd,
                        libc::SOL_SOCKET,
                        libc::SO_ERROR,
                        &mut er as *mut _ as _,
                        &mut l,
                    );
                    if er != 0 {
                        fail(&mut conns, fd, &mut recs, &mut outstanding, "connect");
                        continue;
                    }
                    c.connecting = false;
                }
                if let Some(er) = pump(c) {
                    fail(&mut conns, fd, &mut recs, &mut outstanding, er);
                    continue;
                }
                if e & (libc::EPOLLIN | libc::EPOLLRDHUP | libc::EPOLLERR | libc::EPOLLHUP) == 0 {
                    continue;
                }
                let mut eof = None;
                loop {
                    let r = libc::recv(fd, rb.as_mut_ptr() as _, rb.len(), 0);
                    if r > 0 {
                        c.buf.extend_from_slice(&rb[..r as usize]);
                        if (r as usize) < rb.len()
                            && e & (libc::EPOLLRDHUP | libc::EPOLLHUP | libc::EPOLLERR) == 0
                        {
                            break;
                        }
                    } else if r == 0 {
                        eof = Some("eof");
                        break;
                    } else {
                        let er = *libc::__errno_location();
                        if er != libc::EAGAIN {
                            eof = Some("reset")
                        }
                        break;
                    }
                }
                let mut drop_it = eof.is_some();
                if let Some(ri) = c.req {
                    let mut p = parse(&c.buf);
                    if p.is_none() && eof == Some("eof") {
                        // close-delimited
                        if let Some(h) = find(&c.buf, b"\r\n\r\n") {
                            let hl = c.buf[..h].to_ascii_lowercase();
                            if find(&hl, b"content-length").is_none()
                                && find(&hl, b"transfer-encoding").is_none()
                            {
                                p = std::str::from_utf8(&c.buf[9..12])
                                    .ok()
                                    .and_then(|x| x.parse().ok())
                                    .map(|s| (s, b'-', true))
                            }
                        }
                    }
                    if let Some((st, bk, close)) = p {
                        let r = &mut recs[ri];
                        r.end = now();
                        r.status = st;
                        r.backend = bk;
                        c.req = None;
                        outstanding -= 1;
                        c.ver += 1;
                        if close || fresh {
                            drop_it = true
                        }
                        if !drop_it {
                            free.push((fd, c.gen))
                        }
                    } else if drop_it {
                        let w = if c.buf.is_empty() {
                            eof.unwrap()
                        } else {
                            "truncated"
                        };
                        fail(&mut conns, fd, &mut recs, &mut outstanding, w);
                        continue;
                    }
                }
                if drop_it {
                    libc::close(fd);
                    conns[fd as usize] = None;
                }
            }
        }
    }
    if let Some(f) = g("--csv") {
        let mut w = std::io::BufWriter::new(std::fs::File::create(f).unwrap());
        for (i, r) in recs.iter().enumerate() {
            writeln!(
                w,
                "{i},{},{},{},{},{},{},{}",
                r.kind as char, r.sched, r.sent, r.end, r.status, r.backend as char, r.err
            )
            .unwrap()
        }
    }
    let mut l: Vec<u64> = recs
        .iter()
        .filter(|r| r.status == 200)
        .map(|r| r.end - r.sent)
        .collect();
    let mut ls: Vec<u64> = recs
        .iter()
        .filter(|r| r.status == 200)
        .map(|r| r.end - r.sched)
        .collect();
    l.sort();
    ls.sort();
    let q = |l: &Vec<u64>, p: f64| {
        if l.is_empty() {
            0.
        } else {
            l[((l.len() as f64 * p) as usize).min(l.len() - 1)] as f64 / 1000.
        }
    };
    println!(
        "{{\"total\":{},\"ok\":{},\"mean_us\":{:.1},\"p50_us\":{:.1},\"p90_us\":{:.1},\"p99_us\":{:.1},\"p999_us\":{:.1},\"max_us\":{:.1},\"p99_sched_us\":{:.1}}}",
        recs.len(),
        l.len(),
        l.iter().sum::<u64>() as f64 / 1000. / l.len().max(1) as f64,
        q(&l, 0.5),
        q(&l, 0.9),
        q(&l, 0.99),
        q(&l, 0.999),
        q(&l, 1.0),
        q(&ls, 0.99)
    );
}
unsafe fn pump(c: &mut Conn) -> Option<&'static str> {
    while c.req.is_some() && c.off < c.out.len() {
        let n = libc::send(
            c.fd,
            c.out[c.off..].as_ptr() as _,
            c.out.len() - c.off,
            libc::MSG_NOSIGNAL,
        );
        if n < 0 {
            return if *libc::__errno_location() == libc::EAGAIN {
                None
            } else {
                Some("send")
            };
        }
        c.off += n as usize;
    }
    None
}
unsafe fn fail(
    conns: &mut Vec<Option<Conn>>,
    fd: i32,
    recs: &mut Vec<Rec>,
    outstanding: &mut usize,
    e: &'static str,
) {
    if let Some(c) = conns[fd as usize].take() {
        if let Some(r) = c.req {
            recs[r].end = now();
            recs[r].err = e;
            *outstanding -= 1;
        }
        libc::close(fd);
    }
}
