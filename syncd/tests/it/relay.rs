//! A wire that can be cut: passes connections on to a syncd, as long as it is up.

use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// The wire. Gone when dropped.
#[derive(Debug)]
pub(crate) struct Relay {
    pub(crate) address: SocketAddr,
    state: watch::Sender<State>,
}

#[derive(Clone, Copy, Debug)]
struct State {
    is_up: bool,
    /// Connections last as long as it does not change.
    turn: u64,
}

impl Relay {
    pub(crate) async fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let first = State {
            is_up: true,
            turn: 0,
        };
        let (state, seen) = watch::channel(first);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let seen = seen.clone();
                tokio::spawn(pass(client, server, seen));
            }
        });
        Self { address, state }
    }

    /// Ends all connections; new ones are passed on.
    pub(crate) fn cut(&self) {
        self.state.send_modify(|state| state.turn += 1);
    }

    /// Ends all connections, and new ones at once, until it is repaired.
    pub(crate) fn take_down(&self) {
        self.set(false);
    }

    pub(crate) fn repair(&self) {
        self.set(true);
    }

    fn set(&self, is_up: bool) {
        self.state.send_modify(|state| {
            state.is_up = is_up;
            state.turn += 1;
        });
    }
}

async fn pass(mut client: TcpStream, server: SocketAddr, mut seen: watch::Receiver<State>) {
    let begun = *seen.borrow();
    if !begun.is_up {
        return;
    }
    let Ok(mut server) = TcpStream::connect(server).await else {
        return;
    };
    tokio::select! {
        _ = tokio::io::copy_bidirectional(&mut client, &mut server) => (),
        _ = seen.wait_for(|now| now.turn != begun.turn) => (),
    }
}
