//! The demo leaves nothing behind, not even when it is killed.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;

use examples::client::Client;
use examples::ports;
use examples::process::{Process, Spec, tail};
use examples::programs::Programs;
use examples::scratch::Scratch;
use examples::stack::PORTS;
use examples::trouble::Trouble;
use shared::clock;

use crate::rehearse;

#[test]
fn a_demo_that_is_killed_leaves_nothing_behind() {
    rehearse(async {
        Programs::find()?;
        let scratch = Scratch::new("demo")?;
        let base_port = ports::free(PORTS)?;
        let log = scratch.path().join("said");
        let mut demo = Process::new(Spec {
            name: "demo".to_owned(),
            program: env!("CARGO_BIN_EXE_rehearse").into(),
            args: ["demo", "--port-base", &base_port.to_string()]
                .map(str::to_owned)
                .into(),
            env: Vec::new(),
            folder: scratch.path().to_owned(),
            log: log.clone(),
        });
        demo.start()?;
        let shop = Client::new(SocketAddr::from((Ipv4Addr::LOCALHOST, base_port)));
        until("the demo to serve", &log, async || {
            let answer = shop.get("/orders", Duration::from_secs(1)).await;
            answer.is_ok_and(|answer| answer.status.is_success())
        })
        .await;
        until("its directions", &log, async || {
            tail(&log).contains("Ctrl-C ends everything")
        })
        .await;
        demo.kill();
        until("its ports to be free", &log, async || {
            (base_port..base_port + PORTS)
                .all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok())
        })
        .await;
        let folder = std::fs::read_to_string(&log).unwrap();
        let folder = folder
            .lines()
            .find_map(|line| line.trim().strip_prefix("files"))
            .unwrap()
            .trim()
            .to_owned();
        until("its folder to go", &log, async || {
            !std::path::Path::new(&folder).exists()
        })
        .await;
        Ok::<(), Trouble>(())
    });
}

async fn until(what: &str, log: &std::path::Path, mut there: impl AsyncFnMut() -> bool) {
    let deadline = clock::now() + Duration::from_secs(30);
    while !there().await {
        assert!(
            clock::now() < deadline,
            "waited for {what} in vain: {}",
            tail(log)
        );
        clock::sleep(Duration::from_millis(20)).await;
    }
}
