//! TLS on listeners, with real clients of it.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, Once};
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject;
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, ProtocolVersion, RootCertStore, StreamOwned,
    SupportedProtocolVersion,
};
use shared::clock;

use crate::harness::http2::{Ask, Proper};
use crate::harness::{Act, B, Node, PATIENCE, Proxy, Setup, open};

const GET: &str = "GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n";
const LAST: &str = "GET / HTTP/1.1\r\nHost: shop.test\r\nConnection: close\r\n\r\n";

static FOLDERS: AtomicU32 = AtomicU32::new(0);

/// A folder of certificates.
pub(crate) struct Papers(pub(crate) PathBuf);

impl Papers {
    pub(crate) fn new() -> Self {
        let number = FOLDERS.fetch_add(1, SeqCst);
        let name = format!("hotwarm-papers-{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    pub(crate) fn cert(&self, name: &str) -> PathBuf {
        self.0.join(format!("{name}.pem"))
    }

    pub(crate) fn key(&self, name: &str) -> PathBuf {
        self.0.join(format!("{name}.key"))
    }

    /// Makes a certificate for `hosts`, as a renewal does: a new file is moved over the old one.
    pub(crate) fn make(&self, name: &str, hosts: &[&str]) -> CertificateDer<'static> {
        let hosts: Vec<_> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(hosts).unwrap();
        for (path, text) in [
            (self.cert(name), made.cert.pem()),
            (self.key(name), made.signing_key.serialize_pem()),
        ] {
            let new = self.0.join("new");
            fs::write(&new, text).unwrap();
            fs::rename(new, path).unwrap();
        }
        self.read(name)
    }

    pub(crate) fn read(&self, name: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_file(self.cert(name)).unwrap()
    }

    /// The listener's key with these certificates.
    pub(crate) fn tls(&self, names: &[&str]) -> String {
        let pair = |name: &&str| {
            let (cert, key) = (self.cert(name), self.key(name));
            format!("{{ cert = {cert:?}, key = {key:?} }}")
        };
        let pairs: Vec<_> = names.iter().map(pair).collect();
        format!("tls = [{}]", pairs.join(", "))
    }
}

impl Drop for Papers {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What a client of these certificates and versions knows; it remembers sessions.
fn knowing(
    certs: &[CertificateDer<'static>],
    versions: &[&'static SupportedProtocolVersion],
) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for cert in certs {
        roots.add(cert.clone()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Arc::new(config)
}

/// A client that speaks TLS.
pub(crate) struct Secret(pub(crate) StreamOwned<ClientConnection, TcpStream>);

impl Secret {
    pub(crate) fn connect(proxy: &Proxy, config: &Arc<ClientConfig>, host: &str) -> Self {
        let name = ServerName::try_from(host.to_owned()).unwrap();
        let session = ClientConnection::new(Arc::clone(config), name).unwrap();
        let stream = TcpStream::connect(proxy.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self(StreamOwned::new(session, stream))
    }

    pub(crate) fn send(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).unwrap();
        self.0.flush().unwrap();
    }

    /// Reads an answer to its end, which must be that of `body`.
    pub(crate) fn ask(&mut self, text: &str, body: &str) -> String {
        self.send(text);
        self.until(&format!("\r\n\r\n{body}"))
    }

    pub(crate) fn until(&mut self, end: &str) -> String {
        let mut answer = Vec::new();
        while !answer.ends_with(end.as_bytes()) {
            let mut piece = [0; 4096];
            let read = self.0.read(&mut piece).unwrap();
            assert!(read > 0, "{:?}", String::from_utf8_lossy(&answer));
            answer.extend_from_slice(&piece[..read]);
        }
        String::from_utf8(answer).unwrap()
    }

    /// Everything to the end, and whether the end was told.
    pub(crate) fn rest(&mut self) -> (Vec<u8>, bool) {
        let mut all = Vec::new();
        match self.0.read_to_end(&mut all) {
            Ok(_) => (all, true),
            Err(error) => {
                let cut = [ErrorKind::UnexpectedEof, ErrorKind::ConnectionReset];
                assert!(cut.contains(&error.kind()), "{error}");
                (all, false)
            }
        }
    }

    fn cert(&self) -> CertificateDer<'static> {
        let certs = self.0.conn.peer_certificates().unwrap();
        certs[0].clone().into_owned()
    }
}

static LOG: Mutex<Vec<u8>> = Mutex::new(Vec::new());

struct Log;

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if let Ok(mut log) = LOG.lock() {
            log.extend_from_slice(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn keep_log() {
    static KEPT: Once = Once::new();
    KEPT.call_once(|| {
        tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(|| Log)
            .init();
    });
}

/// The log's lines with all of these words.
fn logged(words: &[&str]) -> Vec<String> {
    let text = String::from_utf8(LOG.lock().unwrap().clone()).unwrap();
    let has_all = |line: &&str| words.iter().all(|word| line.contains(word));
    text.lines().filter(has_all).map(str::to_owned).collect()
}

fn exists(program: &str) -> bool {
    let found = Command::new(program)
        .arg("version")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    found.is_ok()
}

#[test]
fn requests_over_tls_are_served_and_said_to_be_https() {
    let (papers, node) = (Papers::new(), Node::ok());
    let cert = papers.make("a", &["shop.test"]);
    let proxy = Setup::new(&[&node]).listener(&papers.tls(&["a"])).start();
    for (version, told) in [
        (&TLS13, ProtocolVersion::TLSv1_3),
        (&TLS12, ProtocolVersion::TLSv1_2),
    ] {
        let config = knowing(std::slice::from_ref(&cert), &[version]);
        let mut client = Secret::connect(&proxy, &config, "shop.test");
        for extra in ["", "X-Forwarded-Proto: http\r\nX-Forwarded-Host: b\r\n"] {
            let request = format!("GET / HTTP/1.1\r\nHost: shop.test\r\n{extra}\r\n");
            assert!(client.ask(&request, "ok").starts_with("HTTP/1.1 200 "));
        }
        assert_eq!(client.0.conn.protocol_version(), Some(told));
        assert_eq!(client.0.conn.alpn_protocol(), Some(&b"http/1.1"[..]));
    }
    let said: Vec<_> = node.rest();
    assert_eq!(said.len(), 4);
    for seen in &said {
        // 127.0.0.1 is believed by default: what it says of the client stands.
        let own = seen.field("x-forwarded-host") == Some("shop.test");
        let proto = if own { "https" } else { "http" };
        assert_eq!(seen.fields("x-forwarded-proto"), [proto]);
        let forwarded = seen.fields("forwarded").pop().unwrap();
        assert!(
            forwarded.starts_with("for=127.0.0.1;proto=https;"),
            "{forwarded}"
        );
    }
    assert!(
        said.iter()
            .any(|seen| seen.field("x-forwarded-proto") == Some("https"))
    );
}

#[test]
fn a_client_that_offers_http2_speaks_it() {
    let (papers, node) = (Papers::new(), Node::ok());
    let cert = papers.make("a", &["localhost"]);
    let proxy = Setup::new(&[&node]).listener(&papers.tls(&["a"])).start();
    let mut config = knowing(std::slice::from_ref(&cert), &[&TLS13]);
    let offered = Arc::get_mut(&mut config).unwrap();
    offered.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let client = Proper::connect_tls(proxy.address, config);
    let asks = (0..20).map(|n| Ask::get(&format!("https://localhost/{n}")));
    for answer in client.all(asks) {
        assert_eq!((answer.status, answer.text().as_str()), (200, "ok"));
    }
    let said = node.rest();
    assert_eq!(said.len(), 20);
    assert!(
        said.iter()
            .all(|seen| seen.fields("x-forwarded-proto") == ["https"])
    );
}

#[test]
fn a_stranger_s_word_about_the_scheme_is_replaced() {
    let (papers, node) = (Papers::new(), Node::ok());
    let cert = papers.make("a", &["shop.test"]);
    let proxy = Setup::new(&[&node])
        .listener(&papers.tls(&["a"]))
        .start_as("trusted_proxies = []");
    let config = knowing(&[cert], &[&TLS13]);
    let mut client = Secret::connect(&proxy, &config, "shop.test");
    client.ask(
        "GET / HTTP/1.1\r\nHost: shop.test\r\nX-Forwarded-Proto: http\r\nForwarded: proto=http\r\n\r\n",
        "ok",
    );
    let seen = node.rest().remove(0);
    assert_eq!(seen.fields("x-forwarded-proto"), ["https"]);
    let ours = "for=127.0.0.1;proto=https;host=\"shop.test\"";
    assert_eq!(seen.fields("forwarded"), [ours]);
}

#[test]
fn the_name_that_a_client_asks_for_decides_about_the_certificate() {
    let (papers, node) = (Papers::new(), Node::ok());
    let first = papers.make("first", &["shop.test"]);
    let wild = papers.make("wild", &["*.shop.test", "other.test"]);
    let proxy = Setup::new(&[&node])
        .listener(&papers.tls(&["first", "wild"]))
        .start();
    let config = knowing(&[first.clone(), wild.clone()], &[&TLS13, &TLS12]);
    for (host, cert) in [
        ("shop.test", &first),
        ("a.shop.test", &wild),
        ("other.test", &wild),
    ] {
        let mut client = Secret::connect(&proxy, &config, host);
        client.ask(GET, "ok");
        assert_eq!(&client.cert(), cert, "{host}");
    }
    // Nobody's name gets the first one, which the client then refuses, and so does an address.
    for host in ["unknown.test", "127.0.0.1"] {
        let mut client = Secret::connect(&proxy, &config, host);
        let error = client.0.write_all(GET.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("not valid for name"), "{error}");
        assert!(
            error.contains("only valid for DnsName(\"shop.test\")"),
            "{error}"
        );
    }
}

#[test]
fn sessions_are_resumed_at_any_worker() {
    let (papers, node) = (Papers::new(), Node::ok());
    let cert = papers.make("a", &["shop.test"]);
    let proxy = Setup::new(&[&node])
        .listener(&papers.tls(&["a"]))
        .threads(2)
        .start();
    for version in [&TLS13, &TLS12] {
        let config = knowing(std::slice::from_ref(&cert), &[version]);
        let kinds: Vec<_> = (0..8)
            .map(|_| {
                let mut client = Secret::connect(&proxy, &config, "shop.test");
                client.ask(GET, "ok");
                client.0.conn.handshake_kind().unwrap()
            })
            .collect();
        assert_eq!(kinds[0], HandshakeKind::Full);
        assert_eq!(kinds[1..], [HandshakeKind::Resumed; 7], "{version:?}");
    }
}

#[test]
fn renewed_files_are_taken_up_and_no_connection_is_lost() {
    let (papers, node) = (Papers::new(), Node::ok());
    let old = papers.make("a", &["shop.test"]);
    let proxy = Setup::new(&[&node]).listener(&papers.tls(&["a"])).start();
    let mut kept = Secret::connect(
        &proxy,
        &knowing(std::slice::from_ref(&old), &[&TLS13]),
        "shop.test",
    );
    kept.ask(GET, "ok");
    let new = papers.make("a", &["shop.test"]);
    let certs = [old.clone(), new.clone()];
    proxy.until("the new certificate", |proxy| {
        // A new client each time: a session that is resumed shows no certificate.
        let mut client = Secret::connect(proxy, &knowing(&certs, &[&TLS13]), "shop.test");
        client.ask(GET, "ok");
        let cert = client.cert();
        assert!(certs.contains(&cert));
        cert == new
    });
    assert!(kept.ask(GET, "ok").starts_with("HTTP/1.1 200 "));
}

#[test]
fn a_renewal_that_cannot_be_used_is_told_and_the_old_certificate_stays() {
    keep_log();
    let (papers, node) = (Papers::new(), Node::ok());
    let old = papers.make("worn", &["shop.test"]);
    let proxy = Setup::new(&[&node])
        .listener(&papers.tls(&["worn"]))
        .start();
    let now = |certs: &[CertificateDer<'static>]| {
        let mut client = Secret::connect(&proxy, &knowing(certs, &[&TLS13]), "shop.test");
        client.ask(GET, "ok");
        client.cert()
    };
    fs::write(papers.cert("worn"), "nothing of use").unwrap();
    let path = papers.cert("worn").display().to_string();
    let told = || {
        logged(&[
            "ERROR",
            &path,
            "holds no certificate",
            "the one before it stays",
        ])
    };
    proxy.until("the error is told", |_| !told().is_empty());
    assert_eq!(now(std::slice::from_ref(&old)), old);
    fs::remove_file(papers.key("worn")).unwrap();
    proxy.until("it is told again", |_| told().len() == 2);
    assert_eq!(now(std::slice::from_ref(&old)), old);

    let new = papers.make("worn", &["shop.test"]);
    proxy.until("the way back", |_| now(&[old.clone(), new.clone()]) == new);
    assert_eq!(told().len(), 2, "each state is told once");
}

#[test]
fn plain_http_at_a_tls_port_is_closed_and_told() {
    keep_log();
    let (papers, node) = (Papers::new(), Node::ok());
    let cert = papers.make("a", &["shop.test"]);
    let proxy = Setup::new(&[&node]).listener(&papers.tls(&["a"])).start();
    let mut plain = proxy.client();
    plain.send(GET);
    let mut said = Vec::new();
    // The rest of what it sent may reset the connection.
    let _ = plain.stream().read_to_end(&mut said);
    assert!(!said.starts_with(b"HTTP"), "{said:?}");
    let peer = plain.stream().local_addr().unwrap().to_string();
    proxy.until("it is told", |_| {
        !logged(&[&peer, "INFO", "does not speak TLS", "https://"]).is_empty()
    });
    // And the port goes on.
    let mut client = Secret::connect(&proxy, &knowing(&[cert], &[&TLS13]), "shop.test");
    client.ask(GET, "ok");
    assert_eq!(node.rest().len(), 1);
}

#[test]
fn a_handshake_that_does_not_come_ends_by_the_head_s_deadline() {
    let (papers, node) = (Papers::new(), Node::ok());
    papers.make("a", &["shop.test"]);
    let proxy = Setup::new(&[&node])
        .listener(&papers.tls(&["a"]))
        .limits("header_timeout = \"400ms\", idle_timeout = \"60s\"")
        .start();
    let began = clock::now();
    let mut silent = proxy.client();
    assert!(silent.is_closed());
    let mut slow = proxy.client();
    // The beginning of a record that promises more.
    slow.send([22, 3, 1, 2, 0, 1]);
    assert!(slow.is_closed());
    let took = clock::now() - began;
    assert!(
        took > Duration::from_millis(700) && took < Duration::from_secs(8),
        "{took:?}"
    );
}

#[test]
fn pieces_of_records_do_not_keep_an_idle_connection() {
    let (papers, node) = (Papers::new(), Node::ok());
    let cert = papers.make("a", &["shop.test"]);
    let proxy = Setup::new(&[&node])
        .listener(&papers.tls(&["a"]))
        .limits("header_timeout = \"10s\", idle_timeout = \"3s\"")
        .start();
    let mut client = Secret::connect(&proxy, &knowing(&[cert], &[&TLS13]), "shop.test");
    client.ask(GET, "ok");
    let began = clock::now();
    client.0.sock.write_all(&[23, 3, 3, 16, 0]).unwrap();
    while client.0.sock.write_all(&[0]).is_ok() {
        assert!(clock::now() - began < PATIENCE, "it is kept for ever");
        clock::pause_thread(Duration::from_millis(50));
    }
    assert!(clock::now() - began >= Duration::from_millis(2900));
}

#[test]
fn handshakes_count_as_connections_and_too_many_are_told_so() {
    let (papers, node) = (Papers::new(), Node::ok());
    let cert = papers.make("a", &["shop.test"]);
    let proxy = Setup::new(&[&node])
        .listener(&papers.tls(&["a"]))
        .limits("max_connections = 1")
        .start();
    let connected = |proxy: &Proxy| {
        let address = proxy.address.to_string();
        proxy
            .metrics
            .client_connections
            .with_label_values(&[&*address])
            .get()
    };
    let silent = proxy.client();
    proxy.until("it counts", |proxy| connected(proxy) == 1);
    let config = knowing(&[cert], &[&TLS13]);
    let mut client = Secret::connect(&proxy, &config, "shop.test");
    client.send(GET);
    let (answer, told) = client.rest();
    assert!(answer.starts_with(b"HTTP/1.1 503 ") && told);
    drop(silent);
    proxy.until("it is gone", |proxy| connected(proxy) == 0);
    let mut client = Secret::connect(&proxy, &config, "shop.test");
    client.ask(GET, "ok");
}

#[test]
fn a_proper_end_is_told_and_a_truncated_body_s_is_not() {
    let (papers, node) = (
        Papers::new(),
        Node::start(|seen| {
            let (how, rest) = match seen.target() {
                "/whole" => ("Content-Length: 4", "body"),
                "/chunks" => ("Transfer-Encoding: chunked", "4\r\nbody\r\n0\r\n\r\n"),
                "/short" => ("Content-Length: 9", "body"),
                _ => ("Transfer-Encoding: chunked", "4\r\nbody\r\n"),
            };
            Act::Last(format!("HTTP/1.1 200 OK\r\n{how}\r\n\r\n{rest}").into_bytes())
        }),
    );
    let cert = papers.make("a", &["shop.test"]);
    let proxy = Setup::new(&[&node]).listener(&papers.tls(&["a"])).start();
    for version in [&TLS13, &TLS12] {
        let config = knowing(std::slice::from_ref(&cert), &[version]);
        for protocol in ["1.1", "1.0"] {
            for (target, whole) in [
                ("/whole", true),
                ("/chunks", true),
                ("/short", false),
                ("/cut", false),
            ] {
                let mut client = Secret::connect(&proxy, &config, "shop.test");
                client.send(&format!(
                    "GET {target} HTTP/{protocol}\r\nHost: shop.test\r\nConnection: close\r\n\r\n"
                ));
                let (_, told) = client.rest();
                assert_eq!(told, whole, "{target} HTTP/{protocol} {version:?}");
            }
        }
    }
}

#[test]
fn a_websocket_inside_of_tls_passes_everything_and_its_end_is_told() {
    let papers = Papers::new();
    let cert = papers.make("shop", &["shop.test"]);
    let (hand, handed) = channel();
    let yes = "HTTP/1.1 101 X\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n\x01\x02hi";
    let node = Node::start(move |_| Act::Hand(yes.as_bytes().to_vec(), hand.clone()));
    let proxy = Setup::new(&[&node])
        .listener(&papers.tls(&["shop"]))
        .start();
    let mut client = Secret::connect(&proxy, &knowing(&[cert], &[&TLS13]), "shop.test");
    let ask = "\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    client.ask(&GET.replace("\r\n\r\n", ask), "\x01\x02hi");
    let (mut far, _) = handed.recv_timeout(PATIENCE).unwrap();
    let payload = vec![7; 300_000];
    client.0.write_all(&payload).unwrap();
    client.0.flush().unwrap();
    let mut came = vec![0; payload.len()];
    far.read_exact(&mut came).unwrap();
    assert!(came == payload);
    let frame = [&[0x82, 127, 0, 0, 0, 0, 0, 4, 0x93, 0xe0], &payload[..]].concat();
    far.write_all(&frame).unwrap();
    let mut came = vec![0; frame.len()];
    client.0.read_exact(&mut came).unwrap();
    assert!(came == frame);
    proxy.steering.publish(open(2, B));
    assert_eq!(client.rest(), (vec![0x88, 2, 0x03, 0xf4], true));
}

#[test]
fn idle_connections_are_ended_in_good_order() {
    let (papers, node) = (Papers::new(), Node::ok());
    let cert = papers.make("a", &["shop.test"]);
    let proxy = Setup::new(&[&node]).listener(&papers.tls(&["a"])).start();
    let mut client = Secret::connect(&proxy, &knowing(&[cert], &[&TLS13]), "shop.test");
    client.ask(GET, "ok");
    proxy.begin_drain();
    assert_eq!(client.rest(), (Vec::new(), true));
}

#[test]
fn bodies_of_any_size_pass_both_ways_and_pieces_pass_at_once() {
    let large = "x".repeat(3 << 20);
    let (tell, told) = channel();
    let told = Mutex::new(Some(told));
    let answer = large.clone();
    let node = Node::start(move |seen| match seen.target() {
        "/pieces" => {
            let pieces = [
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n",
                "3\r\ntwo\r\n",
                "0\r\n\r\n",
            ];
            let pieces = pieces.map(|piece| piece.as_bytes().to_vec()).to_vec();
            Act::Pieces(pieces, told.lock().unwrap().take().unwrap())
        }
        "/upload" => Act::ok(&seen.body.len().to_string()),
        _ => Act::ok(&answer),
    });
    let papers = Papers::new();
    let cert = papers.make("a", &["shop.test"]);
    let proxy = Setup::new(&[&node]).listener(&papers.tls(&["a"])).start();
    let config = knowing(&[cert], &[&TLS13]);
    let mut client = Secret::connect(&proxy, &config, "shop.test");
    client.send("GET /pieces HTTP/1.1\r\nHost: shop.test\r\n\r\n");
    client.until("one\r\n");
    tell.send(()).unwrap();
    client.until("two\r\n");
    tell.send(()).unwrap();
    client.until("0\r\n\r\n");

    let length = large.len();
    client.send(&format!("POST /upload HTTP/1.1\r\nHost: shop.test\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n"));
    client.until("100 Continue\r\n\r\n");
    client.send(&large);
    client.until(&length.to_string());

    client.send(LAST);
    let (answer, told) = client.rest();
    assert!(told && answer.ends_with(large.as_bytes()));
}

#[test]
fn a_client_that_takes_nothing_is_left() {
    let large = "x".repeat(16 << 20);
    let node = Node::start(move |_| Act::ok(&large));
    let papers = Papers::new();
    let cert = papers.make("a", &["shop.test"]);
    let proxy = Setup::new(&[&node])
        .listener(&papers.tls(&["a"]))
        .limits("body_idle_timeout = \"500ms\"")
        .start();
    let mut client = Secret::connect(&proxy, &knowing(&[cert], &[&TLS13]), "shop.test");
    client.send(GET);
    let address = proxy.address.to_string();
    let gauge = proxy
        .metrics
        .client_connections
        .with_label_values(&[&*address]);
    proxy.until("it is seen", |_| gauge.get() == 1);
    proxy.until("it is left", |_| gauge.get() == 0);
    assert!(!client.rest().1);
}

#[test]
fn curl_and_openssl_agree() {
    let (papers, node) = (Papers::new(), Node::ok());
    papers.make("a", &["shop.test"]);
    let proxy = Setup::new(&[&node]).listener(&papers.tls(&["a"])).start();
    let (ca, address) = (papers.cert("a"), proxy.address);
    if exists("curl") {
        let out = curl(&ca, address.port());
        assert!(out.status.success(), "{out:?}");
        assert_eq!(out.stdout, b"ok");
    }
    if exists("openssl") {
        let talk = |version: &str| {
            let mut openssl = Command::new("openssl")
                .args(["s_client", "-servername", "shop.test", "-ign_eof", version])
                .arg("-connect")
                .arg(address.to_string())
                .arg("-CAfile")
                .arg(&ca)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let _ = openssl.stdin.take().unwrap().write_all(LAST.as_bytes());
            let out = openssl.wait_with_output().unwrap();
            String::from_utf8_lossy(&out.stdout).into_owned()
        };
        for version in ["-tls1_3", "-tls1_2"] {
            let said = talk(version);
            assert!(said.contains("HTTP/1.1 200 "), "{said}");
            assert!(said.contains("Verify return code: 0 (ok)"), "{said}");
        }
        assert!(!talk("-tls1_1").contains("HTTP/1.1"));
    }
}

fn curl(ca: &Path, port: u16) -> std::process::Output {
    Command::new("curl")
        .args(["-sS", "--max-time", "20", "--noproxy", "*", "--cacert"])
        .arg(ca)
        .arg("--resolve")
        .arg(format!("shop.test:{port}:127.0.0.1"))
        .arg(format!("https://shop.test:{port}/"))
        .output()
        .unwrap()
}
