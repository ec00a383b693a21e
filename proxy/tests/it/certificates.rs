//! Clients that show certificates, and what nodes get to know of them.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, HandshakeKind, RootCertStore, SupportedProtocolVersion};

use crate::encryption::{Papers, Secret};
use crate::harness::{Node, Proxy, Setup};

const GET: &str = "GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n";
/// What a client may say that it is.
const CLAIMS: &str = "GET / HTTP/1.1\r\nHost: shop.test\r\nClient-Cert: :AAAA:\r\nclient-cert-chain: :AAAA:\r\nX-Client-Cert-Subject: CN=root\r\nx_client_cert_subject: CN=root\r\n\r\n";

/// Somebody who certifies clients.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn write(&self, papers: &Papers) -> PathBuf {
        let (path, new) = (papers.0.join("ca.pem"), papers.0.join("ca.new"));
        fs::write(&new, self.0.pem()).unwrap();
        fs::rename(new, &path).unwrap();
        path
    }

    fn certify(&self, name: &str) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.0).unwrap();
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        (cert.der().clone(), key.into())
    }
}

fn client(
    papers: &Papers,
    version: &'static SupportedProtocolVersion,
    shows: Option<(CertificateDer<'static>, PrivateKeyDer<'static>)>,
) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    let server = CertificateDer::from_pem_file(papers.cert("a")).unwrap();
    roots.add(server).unwrap();
    let config =
        ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots);
    Arc::new(match shows {
        Some((cert, key)) => config.with_client_auth_cert(vec![cert], key).unwrap(),
        None => config.with_no_client_auth(),
    })
}

fn start(papers: &Papers, node: &Node, auth: &str) -> Proxy {
    papers.make("a", &["shop.test"]);
    Setup::new(&[node])
        .listener(&papers.tls(&["a"]))
        .listener(&format!(
            "client_ca = {:?}\n{auth}",
            papers.0.join("ca.pem")
        ))
        .start()
}

fn is_served(proxy: &Proxy, config: &Arc<ClientConfig>) -> bool {
    let mut client = Secret::connect(proxy, config, "shop.test");
    // With TLS 1.3 a client learns only from what it reads that it is not let in.
    let sent = std::io::Write::write_all(&mut client.0, GET.as_bytes()).is_ok();
    let mut begin = [0; 12];
    sent && std::io::Read::read_exact(&mut client.0, &mut begin).is_ok()
        && begin == *b"HTTP/1.1 200"
}

fn failed(proxy: &Proxy) -> u64 {
    let listener = proxy.address.to_string();
    let family = &proxy.metrics.tls_handshakes_failed;
    family
        .with_label_values(&[&*listener, "client-certificate"])
        .get()
}

#[test]
fn only_who_is_certified_gets_in_and_the_node_knows_who_it_is() {
    let (papers, node, authority) = (Papers::new(), Node::ok(), Authority::new());
    authority.write(&papers);
    let proxy = start(&papers, &node, "");
    for (version, others) in [(&TLS13, 2), (&TLS12, 4)] {
        let (ann, key) = authority.certify("Ann, of \"Shop\"");
        let config = client(&papers, version, Some((ann.clone(), key)));
        let mut connection = Secret::connect(&proxy, &config, "shop.test");
        for claims in [GET, CLAIMS] {
            connection.ask(claims, "ok");
            let seen = node.seen();
            assert_eq!(
                seen.fields("x-client-cert-subject"),
                ["CN=Ann\\, of \\\"Shop\\\""],
                "{claims}"
            );
            let sent = seen.fields("client-cert");
            assert!(sent.len() == 1 && sent[0].starts_with(":MII") && sent[0].ends_with(':'));
            assert_eq!(sent[0].len(), ann.len().div_ceil(3) * 4 + 2);
            assert!(seen.field("client-cert-chain").is_none());
            assert!(!seen.head.contains("root"), "{}", seen.head);
        }
        let stranger = Authority::new().certify("Ann");
        assert!(!is_served(
            &proxy,
            &client(&papers, version, Some(stranger))
        ));
        assert!(!is_served(&proxy, &client(&papers, version, None)));
        proxy.until("both are counted", |proxy| failed(proxy) == others);
    }
    assert!(node.rest().is_empty());
}

#[test]
fn who_shows_no_certificate_where_it_may_cannot_claim_one() {
    let (papers, node, authority) = (Papers::new(), Node::ok(), Authority::new());
    authority.write(&papers);
    let proxy = start(&papers, &node, "client_auth = \"optional\"");
    // 127.0.0.1 is believed in other matters.
    let config = client(&papers, &TLS13, None);
    Secret::connect(&proxy, &config, "shop.test").ask(CLAIMS, "ok");
    let seen = node.seen();
    assert!(seen.field("client-cert").is_none() && seen.field("client-cert-chain").is_none());
    assert!(!seen.head.contains("root"), "{}", seen.head);
    let config = client(&papers, &TLS13, Some(authority.certify("Ann")));
    Secret::connect(&proxy, &config, "shop.test").ask(GET, "ok");
    assert_eq!(node.seen().field("x-client-cert-subject"), Some("CN=Ann"));
    let stranger = Authority::new().certify("Ann");
    assert!(!is_served(&proxy, &client(&papers, &TLS13, Some(stranger))));
}

#[test]
fn a_stranger_s_claim_is_removed_where_nobody_is_asked() {
    let node = Node::ok();
    for (trusted, kept) in [("[]", false), ("[\"127.0.0.0/8\"]", true)] {
        let proxy = Setup::new(&[&node]).start_as(&format!("trusted_proxies = {trusted}"));
        proxy.ask(CLAIMS);
        let seen = node.seen();
        for name in ["client-cert", "client-cert-chain", "x-client-cert-subject"] {
            assert_eq!(seen.field(name).is_some(), kept, "{name}, {trusted}");
        }
    }
}

#[test]
fn who_certifies_clients_may_change_and_no_session_outlives_it() {
    let (papers, node) = (Papers::new(), Node::ok());
    let (old, new) = (Authority::new(), Authority::new());
    let path = old.write(&papers);
    let proxy = start(&papers, &node, "client_auth = \"required\"");
    for version in [&TLS13, &TLS12] {
        let ann = client(&papers, version, Some(old.certify("Ann")));
        for _ in 0..2 {
            let mut connection = Secret::connect(&proxy, &ann, "shop.test");
            connection.ask(GET, "ok");
            assert_eq!(
                connection.0.conn.handshake_kind(),
                Some(HandshakeKind::Full)
            );
        }
    }
    let (ann, bob) = (old.certify("Ann"), new.certify("Bob"));
    let (ann, bob) = (
        client(&papers, &TLS13, Some(ann)),
        client(&papers, &TLS13, Some(bob)),
    );
    assert!(is_served(&proxy, &ann) && !is_served(&proxy, &bob));
    new.write(&papers);
    proxy.until("the new one counts", |proxy| is_served(proxy, &bob));
    assert!(!is_served(&proxy, &ann));
    fs::write(path, "nothing of use").unwrap();
    let listener = proxy.address.to_string();
    let reloads = |result: &str| {
        let family = &proxy.metrics.tls_reloads;
        family.with_label_values(&[&*listener, result]).get()
    };
    proxy.until("it is counted", |_| reloads("failed") == 1);
    assert!(is_served(&proxy, &bob));
    assert_eq!(reloads("ok"), 1);
}
