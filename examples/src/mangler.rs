//! A bad wire: passes connections on to a server, and damages what the server sends on long ones, now and then, from a seed, until
//! it is healed.
//!
//! Short exchanges are left alone: what is damaged is the stream of changes, not the questions and answers around it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use shared::rng::Rng;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// What a connection must begin with to be damaged.
const STREAM: &[u8] = b"GET /v1/stream";
/// Bytes between two damages, at most.
const EVERY_MOST: u64 = 400_000;

/// The wire. Closed for new connections when dropped.
#[derive(Debug)]
pub struct Mangler {
    harm: Arc<Harm>,
    listening: JoinHandle<()>,
}

/// What the wire does, and has done.
#[derive(Debug, Default)]
struct Harm {
    damages: AtomicU64,
    is_over: AtomicBool,
}

impl Mangler {
    /// Listens on `port` of loopback and passes on to `server`.
    ///
    /// # Errors
    /// The port cannot be listened on.
    pub async fn start(port: u16, server: SocketAddr, seed: u64) -> std::io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", port)).await?;
        let harm = Arc::new(Harm::default());
        let to_do = Arc::clone(&harm);
        let listening = tokio::spawn(async move {
            let mut rng = Rng::with_seed(seed);
            while let Ok((client, _)) = listener.accept().await {
                let (rng, harm) = (rng.fork(), Arc::clone(&to_do));
                tokio::spawn(async move {
                    // Whatever goes wrong here is what a bad wire does.
                    let _ = pass(client, server, rng, &harm).await;
                });
            }
        });
        Ok(Self { harm, listening })
    }

    /// How often something was damaged.
    #[must_use]
    pub fn damages(&self) -> u64 {
        self.harm.damages.load(Ordering::Relaxed)
    }

    /// From now on everything is passed on as it is.
    pub fn heal(&self) {
        self.harm.is_over.store(true, Ordering::Relaxed);
    }
}

impl Drop for Mangler {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

async fn pass(
    mut client: TcpStream,
    server: SocketAddr,
    rng: Rng,
    harm: &Harm,
) -> std::io::Result<()> {
    let mut server = TcpStream::connect(server).await?;
    let mut head = [0; 64];
    let length = client.read(&mut head).await?;
    server.write_all(&head[..length]).await?;
    let stream = head[..length].starts_with(STREAM);
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let forth = tokio::io::copy(&mut from_client, &mut to_server);
    let back = async {
        if stream {
            damage(&mut from_server, &mut to_client, rng, harm).await
        } else {
            tokio::io::copy(&mut from_server, &mut to_client)
                .await
                .map(drop)
        }
    };
    tokio::select! {
        done = forth => done.map(drop),
        done = back => done,
    }
}

/// Flips a bit, leaves a piece out, or hangs up, at a random distance each time. The first exchange is spared.
async fn damage(
    from: &mut (impl AsyncReadExt + Unpin),
    to: &mut (impl AsyncWriteExt + Unpin),
    mut rng: Rng,
    harm: &Harm,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 16 << 10];
    let mut left = rng.u64(10_000..EVERY_MOST);
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            return to.shutdown().await;
        }
        let piece = &mut buffer[..length];
        left = left.saturating_sub(piece.len() as u64);
        if left > 0 || harm.is_over.load(Ordering::Relaxed) {
            to.write_all(piece).await?;
            continue;
        }
        left = rng.u64(10_000..EVERY_MOST);
        harm.damages.fetch_add(1, Ordering::Relaxed);
        match rng.u32(..3) {
            0 => {
                let at = rng.usize(..piece.len());
                piece[at] ^= 1 << rng.u32(..8);
                to.write_all(piece).await?;
            }
            1 => to.write_all(&piece[..piece.len() / 2]).await?,
            _ => return Ok(()),
        }
    }
}
