//! Sockets to listen on: one for each worker, all with the same address; or those that somebody gave.

use std::collections::BTreeSet;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::StartError;

/// Connections that may wait to be accepted, for each worker.
const BACKLOG: i32 = 4096;

/// The sockets of `given` with this address, dealt out so that each is accepted from and each lane accepts; or new ones, one per
/// lane.
pub(super) fn take_or_bind(
    address: SocketAddr,
    lanes: usize,
    given: &mut Vec<TcpListener>,
) -> Result<(SocketAddr, Vec<Vec<TcpListener>>), StartError> {
    let fits = |socket: &mut TcpListener| socket.local_addr().is_ok_and(|it| it == address);
    let taken: Vec<_> = given.extract_if(.., fits).collect();
    if taken.is_empty() {
        let (address, bound) = bind_all(address, lanes)?;
        return Ok((address, bound.into_iter().map(|one| vec![one]).collect()));
    }
    let dealt = deal(taken, lanes).map_err(|source| StartError::Bind {
        advice: "check the socket that was given",
        address,
        source,
    });
    Ok((address, dealt?))
}

fn deal(sockets: Vec<TcpListener>, lanes: usize) -> io::Result<Vec<Vec<TcpListener>>> {
    let mut dealt: Vec<_> = (0..lanes).map(|_| Vec::new()).collect();
    for at in sockets.len()..lanes {
        // Two lanes that share a socket take turns as they can.
        dealt[at].push(sockets[at % sockets.len()].try_clone()?);
    }
    for (at, socket) in sockets.into_iter().enumerate() {
        let one = SockRef::from(&socket);
        one.set_nonblocking(true)?;
        one.set_tcp_nodelay(true)?;
        one.listen(BACKLOG)?;
        dealt[at % lanes].push(socket);
    }
    Ok(dealt)
}

/// Each socket once, however many descriptors there are of it.
pub(super) fn distinct(mut sockets: Vec<OwnedFd>) -> io::Result<Vec<OwnedFd>> {
    let mut seen = BTreeSet::new();
    for socket in &sockets {
        seen.insert(rustix::fs::fstat(socket)?.st_ino);
    }
    sockets.retain(|socket| rustix::fs::fstat(socket).is_ok_and(|stat| seen.remove(&stat.st_ino)));
    Ok(sockets)
}

/// One socket per lane on the same address.
fn bind_all(
    address: SocketAddr,
    lanes: usize,
) -> Result<(SocketAddr, Vec<TcpListener>), StartError> {
    let fail = |source: io::Error| StartError::Bind {
        advice: advice(&source),
        address,
        source,
    };
    // Sockets that share an address would share it with another program that does the same; so it is tried alone first.
    if address.port() != 0 {
        socket(address, false).map_err(fail)?;
    }
    let mut bound: Vec<TcpListener> = Vec::new();
    let mut found = address;
    for _ in 0..lanes {
        let listener = socket(found, true).and_then(|socket| {
            socket.listen(BACKLOG)?;
            let listener = TcpListener::from(socket);
            found = listener.local_addr()?;
            Ok(listener)
        });
        bound.push(listener.map_err(fail)?);
    }
    Ok((found, bound))
}

fn socket(address: SocketAddr, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    socket.set_nonblocking(true)?;
    // Accepted connections inherit it.
    socket.set_tcp_nodelay(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

fn advice(error: &io::Error) -> &'static str {
    let kind = error.kind();
    if kind == io::ErrorKind::AddrInUse {
        "another program listens there: stop it (ss -ltnp shows which it is), or choose another port"
    } else if kind == io::ErrorKind::PermissionDenied {
        "ports below 1024 need root or CAP_NET_BIND_SERVICE: grant it, or choose another port"
    } else if kind == io::ErrorKind::AddrNotAvailable {
        "no interface of this machine has that address: choose one that it has, or 0.0.0.0"
    } else {
        "check the address"
    }
}
