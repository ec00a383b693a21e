//! Claims about certificates: which is chosen, when files are read again, what is said of files that cannot be used.

use std::fs;
use std::path::Path;

use rcgen::generate_simple_self_signed;

use super::*;

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("hotwarm-tls-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn pair(&self, name: &str) -> Pair {
        Pair {
            cert: self.0.join(format!("{name}.pem")),
            key: self.0.join(format!("{name}.key")),
        }
    }

    fn write(&self, name: &str, names: &[&str]) -> Pair {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let made = generate_simple_self_signed(names).unwrap();
        let pair = self.pair(name);
        fs::write(&pair.cert, made.cert.pem()).unwrap();
        fs::write(&pair.key, made.signing_key.serialize_pem()).unwrap();
        pair
    }

    fn load(&self, name: &str, names: &[&str]) -> Arc<CertifiedKey> {
        Loaded::read(self.write(name, names)).unwrap().certified
    }

    fn refusal(&self, pair: Pair) -> (String, bool) {
        let error = Loaded::read(pair).unwrap_err();
        let folder = format!("{}/", self.0.display());
        (error.to_string().replace(&folder, ""), error.is_about_key())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn the_certificate_is_chosen_by_its_names_and_the_first_is_the_default() {
    let folder = Folder::new("choose");
    let keys = [
        folder.load("default", &["shop.example"]),
        folder.load("wild", &["*.shop.example", "other.example"]),
        folder.load("exact", &["api.shop.example", "third.example"]),
    ];
    let schemes = [SignatureScheme::ECDSA_NISTP256_SHA256];
    let chosen = |name| choose(&keys, name, &schemes);
    assert_eq!(chosen(Some("shop.example")), 0);
    assert_eq!(chosen(Some("a.shop.example")), 1);
    assert_eq!(chosen(Some("A.Shop.Example")), 1);
    assert_eq!(chosen(Some("other.example")), 1);
    assert_eq!(chosen(Some("third.example")), 2);
    assert_eq!(chosen(Some("api.shop.example")), 1, "the first that fits");
    assert_eq!(
        chosen(Some("a.b.shop.example")),
        0,
        "a wildcard is one label"
    );
    assert_eq!(chosen(Some("unknown.example")), 0);
    assert_eq!(chosen(None), 0);
    assert_eq!(choose(&keys, Some("third.example"), &[]), 2);
}

#[test]
fn of_two_certificates_for_a_name_the_client_gets_the_one_that_it_can_verify() {
    let folder = Folder::new("schemes");
    let pair = folder.pair("ed");
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let names = vec!["shop.example".to_owned()];
    let params = rcgen::CertificateParams::new(names).unwrap();
    fs::write(&pair.cert, params.self_signed(&key).unwrap().pem()).unwrap();
    fs::write(&pair.key, key.serialize_pem()).unwrap();
    let keys = [
        Loaded::read(pair).unwrap().certified,
        folder.load("ec", &["shop.example"]),
    ];
    let chosen = |scheme| choose(&keys, Some("shop.example"), &[scheme]);
    assert_eq!(chosen(SignatureScheme::ED25519), 0);
    assert_eq!(chosen(SignatureScheme::ECDSA_NISTP256_SHA256), 1);
    assert_eq!(chosen(SignatureScheme::RSA_PSS_SHA256), 0);
}

#[test]
fn files_that_cannot_be_used_are_named_with_what_to_do() {
    let folder = Folder::new("refuse");
    let (one, other) = (folder.write("one", &["a"]), folder.write("other", &["a"]));
    let with = |cert: &Path, key: &Path| Pair {
        cert: cert.into(),
        key: key.into(),
    };
    let write = |name: &str, text: &[u8]| {
        let path = folder.0.join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let absent = folder.0.join("absent.pem");
    let broken = write(
        "broken.pem",
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    );
    let cut = write("cut.pem", b"-----BEGIN CERTIFICATE-----\nAAAA\n");
    let large = write("large.pem", &vec![b'x'; 2 << 20]);
    let odd = write(
        "odd.key",
        b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
    );
    for (pair, about_key, words) in [
        (
            with(&absent, &one.key),
            false,
            "read absent.pem: No such file or directory (os error 2); name a PEM file",
        ),
        (
            with(&one.cert, &absent),
            true,
            "read absent.pem: No such file or directory (os error 2); name a PEM file",
        ),
        (
            with(&one.key, &one.key),
            false,
            "one.key holds no certificate; it must be a PEM file with",
        ),
        (
            with(&one.cert, &one.cert),
            true,
            "one.pem holds no private key; it must be a PEM file with",
        ),
        (
            with(&one.cert, &other.key),
            true,
            "the key in other.key does not fit the certificate in one.pem; name the key",
        ),
        (
            with(&broken, &one.key),
            false,
            "broken.pem holds a certificate that cannot be read (",
        ),
        (
            with(&cut, &one.key),
            false,
            "cut.pem holds a certificate that cannot be read (",
        ),
        (
            with(&large, &one.key),
            false,
            "read large.pem: it is larger than 1MiB; name a PEM file",
        ),
        (
            with(&folder.0, &one.key),
            false,
            "it is not a file; name a PEM file",
        ),
        (
            with(&one.cert, &odd),
            true,
            "odd.key holds a private key that cannot be used (",
        ),
    ] {
        let (said, is_about_key) = folder.refusal(pair);
        assert!(said.contains(words), "{said}\nshould say\n{words}");
        assert_eq!(is_about_key, about_key, "{said}");
    }
}

#[test]
fn changed_files_are_read_once_they_are_at_rest() {
    let folder = Folder::new("settle");
    let first = Stamps::of(&folder.write("a", &["a"]));
    let second = Stamps::of(&folder.write("b", &["a"]));
    let gone = Stamps::of(&folder.pair("gone"));
    let mut settling = Settling::new(first);
    let looks = [
        (first, false),
        (second, false),
        (second, true),
        (second, false),
        (gone, false),
        (first, false),
        (gone, false),
        (gone, true),
        (gone, false),
        (second, false),
        (gone, false),
        (gone, false),
    ];
    for (n, (seen, is_due)) in looks.into_iter().enumerate() {
        assert_eq!(settling.handle_look(seen), is_due, "look {n}");
    }
}

#[test]
fn the_watch_ends_with_the_last_offer() {
    let folder = Folder::new("watch");
    let loaded = Loaded::read(folder.write("a", &["a"])).unwrap();
    let (site, watched) = Watched::new(loaded);
    let chooser = Arc::new(Chooser(vec![site]));
    let alive = Arc::downgrade(&chooser);
    let numbers = numbers();
    let expiry = numbers.expiry.clone();
    let watch = Watch {
        watched: vec![watched],
        verifier: None,
        alive,
        numbers,
    };
    let watching = thread::spawn(move || watch.run(Duration::from_millis(1)));
    assert!(!watching.is_finished());
    drop(chooser);
    watching.join().unwrap();
    // Nor is anything shown of it any more.
    assert!(
        prometheus::core::Collector::collect(&expiry)[0]
            .get_metric()
            .is_empty()
    );
}

fn numbers() -> Numbers {
    let metrics = crate::metrics::Metrics::default();
    Numbers {
        listener: "a".to_owned(),
        expiry: metrics.tls_certificate_expiry,
        reloads: metrics.tls_reloads,
    }
}

#[test]
fn an_end_that_is_near_is_worth_a_word() {
    let folder = Folder::new("worry");
    let pair = folder.pair("a");
    let end = 1_800_000_000;
    let said = |now| worry(&pair, Some(end), now).unwrap_or_default();
    assert_eq!(said(end - ENDS_SOON), "");
    assert!(said(end - ENDS_SOON + 1).contains("a.pem ends in 13 days; put a new one"));
    assert!(said(end - 1).contains("ends in 0 days"));
    assert!(said(end + 3 * DAY).contains("a.pem ended 3 days ago, and clients refuse it"));
    assert_eq!(worry(&pair, None, end), None);
    let loaded = Loaded::read(folder.write("b", &["a"])).unwrap();
    let end = loaded.not_after.unwrap();
    assert!(end > unix_seconds() && loaded.worry(unix_seconds()).is_none());
    assert!(loaded.worry(end).is_some());
}
