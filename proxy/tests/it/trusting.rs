//! TLS towards nodes: who is trusted, what is said of who is not, and what an end without a word means.

use std::net::TcpListener;
use std::sync::Arc;

use proxy::config::Endpoint;
use proxy::tls::outgoing::{Outgoing, Trust, TrustFiles};
use proxy::upstream::probe::{How, Seen};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{HandshakeKind, RootCertStore, ServerConfig};

use crate::encryption::Papers;
use crate::harness::front::{Ending, Front};
use crate::harness::gunicorn::gunicorn;
use crate::harness::{Act, Answer, Node, Setup};
use crate::watching::{OFTEN, Prober, failed};

const GET: &str = "GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n";
const POST: &str = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi";

/// What a node shows; `clients` are the certificates that it accepts, if it asks for one.
pub(crate) fn showing(papers: &Papers, name: &str, clients: Option<&str>) -> Arc<ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(name) => {
            let mut roots = RootCertStore::empty();
            roots.add(papers.read(name)).unwrap();
            let roots = Arc::new(roots);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
            builder.with_client_cert_verifier(verifier.build().unwrap())
        }
    };
    let key = PrivateKeyDer::from_pem_file(papers.key(name)).unwrap();
    let config = builder.with_single_cert(vec![papers.read(name)], key);
    Arc::new(config.unwrap())
}

/// The service's table that trusts `name`.
fn trusting(papers: &Papers, name: &str, more: &str) -> String {
    format!("[service.tls]\nca = {:?}\n{more}\n", papers.cert(name))
}

const SOON: &str = "[service.hold]\nmax_wait = \"100ms\"\n[service.timeouts]\nconnect = \"90ms\"\n";

fn refused(answer: &Answer, error: &str, why: &str) {
    assert_eq!(answer.status, 502, "{answer:?}");
    let said = answer.field("proxy-status").unwrap();
    assert!(said.contains(&format!("error={error}")), "{said}");
    assert!(answer.text().contains(why), "{answer:?}");
    assert!(answer.text().contains("was not sent"), "{answer:?}");
}

#[test]
fn a_node_is_asked_over_tls_and_its_connections_and_sessions_go_on() {
    let papers = Papers::new();
    papers.make("a", &["127.0.0.1"]);
    let long = "x".repeat(1 << 20);
    let body = long.clone();
    let node = Node::start(move |seen| match seen.target() {
        "/last" => Act::Last(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec()),
        "/long" => Act::ok(&body),
        _ => Act::ok("ok"),
    });
    let front = Front::tls(&node, showing(&papers, "a", None), Ending::Proper);
    let proxy = Setup::urls([&*front.url])
        .with(&trusting(&papers, "a", ""))
        .start();
    for request in [GET, POST, GET] {
        assert_eq!(proxy.ask(request).text(), "ok");
    }
    assert_eq!(node.seen().field("host"), Some("shop.test"));
    assert_eq!(
        proxy.ask(GET.replace("GET /", "GET /long").as_str()).text(),
        long
    );
    let upload = format!(
        "PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{long}",
        long.len()
    );
    assert_eq!(proxy.ask(&upload).text(), "ok");
    assert_eq!(front.connections(), 1);
    assert_eq!(
        proxy.ask(GET.replace("GET /", "GET /last").as_str()).text(),
        "ok"
    );
    assert_eq!(proxy.ask(GET).text(), "ok");
    assert_eq!(front.connections(), 2);
    let kinds = front.handshakes();
    assert_eq!(kinds, [HandshakeKind::Full, HandshakeKind::Resumed]);
}

#[test]
fn a_certificate_that_is_not_trusted_or_for_another_name_is_refused_before_anything_is_sent() {
    let papers = Papers::new();
    papers.make("a", &["app.test"]);
    papers.make("b", &["app.test"]);
    let node = Node::ok();
    let front = Front::tls(&node, showing(&papers, "a", None), Ending::Proper);
    let ask = |ca: &str, more: &str| {
        let tables = trusting(&papers, ca, more) + SOON;
        Setup::urls([&*front.url]).with(&tables).start().ask(POST)
    };
    let named = "server_name = \"app.test\"";
    refused(
        &ask("b", named),
        "tls_certificate_error",
        "its issuer is not trusted",
    );
    refused(
        &ask("a", ""),
        "tls_certificate_error",
        "it is for another name",
    );
    assert_eq!(node.rest().len(), 0);
    assert_eq!(ask("a", named).text(), "ok");
}

#[test]
fn a_node_that_speaks_no_tls_or_says_nothing_is_told_apart() {
    let papers = Papers::new();
    papers.make("a", &["127.0.0.1"]);
    let plain = Node::start(|_| Act::raw("HTTP/1.1 400 Bad Request\r\n\r\n"));
    // Answers at once, as a server does that takes the hello for a request.
    let talker = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = talker.local_addr().unwrap();
    std::thread::spawn(move || {
        use std::io::Write;
        for stream in talker.incoming() {
            let _ = stream
                .unwrap()
                .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        }
    });
    let ask = |address| {
        let url = format!("https://{address}");
        let tables = trusting(&papers, "a", "") + SOON;
        Setup::urls([&*url]).with(&tables).start().ask(POST)
    };
    refused(&ask(address), "tls_protocol_error", "does not speak TLS");
    let silent = ask(plain.address);
    assert_eq!(silent.status, 504, "{silent:?}");
    assert!(silent.text().contains("not accepted in time"), "{silent:?}");
    assert_eq!(plain.rest().len(), 0);
}

#[test]
fn a_node_that_asks_who_is_calling_is_shown_the_certificate() {
    let papers = Papers::new();
    papers.make("a", &["127.0.0.1"]);
    papers.make("us", &["proxy.test"]);
    let node = Node::ok();
    let config = showing(&papers, "a", Some("us"));
    let front = Front::tls(&node, config, Ending::Proper);
    let ask = |more: &str| {
        let tables = trusting(&papers, "a", more) + SOON;
        Setup::urls([&*front.url]).with(&tables).start().ask(GET)
    };
    let (cert, key) = (papers.cert("us"), papers.key("us"));
    assert_eq!(ask(&format!("cert = {cert:?}\nkey = {key:?}")).text(), "ok");
    assert_eq!(ask("").status, 502);
    assert_eq!(node.rest().len(), 1);
}

#[test]
fn a_body_without_length_is_whole_only_if_tls_ends_with_its_word() {
    let papers = Papers::new();
    papers.make("a", &["127.0.0.1"]);
    let node = Node::start(|_| Act::Last(b"HTTP/1.1 200 OK\r\n\r\nall of it".to_vec()));
    for (ending, is_whole) in [(Ending::Proper, true), (Ending::Cut, false)] {
        let front = Front::tls(&node, showing(&papers, "a", None), ending);
        let tables = trusting(&papers, "a", "");
        let proxy = Setup::urls([&*front.url]).with(&tables).start();
        let answer = proxy.ask(GET);
        // What broke off may have been noticed before its head was passed on.
        let whole = answer.status == 200 && answer.whole && answer.text() == "all of it";
        assert_eq!(whole, is_whole, "{answer:?}");
    }
}

#[test]
fn authorities_are_read_again_when_their_file_changes() {
    let papers = Papers::new();
    papers.make("ca", &["127.0.0.1"]);
    papers.make("a", &["127.0.0.1"]);
    let node =
        Node::start(|_| Act::Last(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec()));
    let front = Front::tls(&node, showing(&papers, "a", None), Ending::Proper);
    let tables = trusting(&papers, "ca", "") + SOON;
    let proxy = Setup::urls([&*front.url]).with(&tables).start();
    assert_eq!(proxy.ask(GET).status, 502);
    std::fs::copy(papers.cert("a"), papers.cert("ca")).unwrap();
    proxy.until("it is trusted", |proxy| proxy.ask(GET).status == 200);
    // No session of before outlives what was trusted then.
    papers.make("ca", &["127.0.0.1"]);
    proxy.until("it is not trusted", |proxy| proxy.ask(GET).status == 502);
}

#[tokio::test]
async fn health_is_asked_for_over_tls_and_a_certificate_that_is_refused_is_a_failure() {
    let papers = Papers::new();
    papers.make("a", &["127.0.0.1"]);
    papers.make("b", &["127.0.0.1"]);
    let node = Node::ok();
    let front = Front::tls(&node, showing(&papers, "a", None), Ending::Proper);
    let address = proxy::config::Address {
        host: "127.0.0.1".to_owned(),
        port: front.url.rsplit(':').next().unwrap().parse().unwrap(),
    };
    let endpoint = |name: &str| {
        let files = TrustFiles {
            ca: Some(papers.cert(name)),
            identity: None,
        };
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let outgoing = Outgoing::new(&Trust::read(files).unwrap(), name).unwrap();
        Endpoint::Tls(address.clone(), Arc::new(outgoing))
    };
    assert_eq!(Prober::at(endpoint("a"), OFTEN).next().await, Seen::Passed);
    let (why, how) = failed(Prober::at(endpoint("b"), OFTEN).next().await);
    assert_eq!(how, How::Wrong);
    assert!(why.contains("its issuer is not trusted"), "{why}");
}

#[test]
fn gunicorn_with_tls_answers() {
    let Some(gunicorn) = gunicorn() else { return };
    let papers = Papers::new();
    papers.make("a", &["127.0.0.1"]);
    let address = crate::harness::nobody().to_string();
    let (cert, key) = (papers.cert("a"), papers.key("a"));
    let _running = gunicorn.start(&[
        "--bind",
        &address,
        "--certfile",
        cert.to_str().unwrap(),
        "--keyfile",
        key.to_str().unwrap(),
    ]);
    let url = format!("https://{address}");
    let proxy = Setup::urls([&*url])
        .with(&trusting(&papers, "a", ""))
        .start();
    for n in 0..50 {
        let (request, wanted) = [(GET, "shop.test"), (POST, "ahi")][n % 2];
        let answer = proxy.ask(request);
        assert_eq!((answer.status, &*answer.text()), (200, wanted), "{n}");
    }
}
