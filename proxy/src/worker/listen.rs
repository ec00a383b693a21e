//! Sockets to listen on: one for each worker, all with the same address.

use std::io;
use std::net::{SocketAddr, TcpListener};

use socket2::{Domain, Protocol, Socket, Type};

use super::StartError;

/// Connections that may wait to be accepted, for each worker.
const BACKLOG: i32 = 4096;

/// One socket per lane on the same address.
pub(super) fn bind_all(
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
