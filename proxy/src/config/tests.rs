//! Claims about configurations: what is read, what holds by default, what is refused and with which words.

use super::*;
use std::fs;

/// A folder that is removed at the end of a test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("hotwarm-config-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn load(&self, text: &str) -> Result<Settings, String> {
        let path = self.0.join("hotwarm.toml");
        fs::write(&path, text).map_err(|error| error.to_string())?;
        load(&path).map_err(|error| {
            let folder = format!("{}/", self.0.display());
            error.to_string().replace(&folder, "")
        })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const MINIMAL: &str = r#"
state_dir = "state"
[[listener]]
bind = "127.0.0.1:8080"
[[service]]
name = "shop"
[[service.node]]
name = "a"
url = "http://127.0.0.1:5001"
[[service.node]]
name = "b"
url = "http://127.0.0.1:5002"
"#;

/// Everything that `INTERFACE.md` names, without what is not built yet.
const WHOLE: &str = r#"
state_dir     = "state"
threads       = 2
drain_timeout = "30s"
syncd_token_file = "token"
log           = { level = "info", format = "text" }
access_log    = { path = "-", format = "json" }

[admin]
bind       = "127.0.0.1:9900"
token_file = "token"

[coordinator]
kind      = "file"

[[listener]]
bind           = "0.0.0.0:8080"
tls            = []
proxy_protocol = "off"
limits         = { max_connections = 10000, header_timeout = "10s", idle_timeout = "60s", body_idle_timeout = "30s", max_header_bytes = "64KiB", max_headers = 100 }

[[service]]
name  = "shop"
hosts = ["*", "shop.example.com", "*.example.com"]
mode  = "hot-warm"
trusted_proxies = ["127.0.0.0/8"]

[[service.node]]
name     = "a"
url      = "http://127.0.0.1:5001"
syncd    = "http://127.0.0.1:7001"
weight   = 100
priority = 0
max_connections = 256
max_queue = 1000
[[service.node]]
name     = "b"
url      = "http://app-b.internal:5001"
syncd    = "http://10.0.0.2:7001"

[service.health]
path = "/healthz"
interval = "500ms"
timeout = "500ms"
rise = 2
fall = 3
status = "200-399"
jitter = 0.1
crash_after = "250ms"
[service.breaker]
consecutive_failures = 5
error_rate = 0.5
min_requests = 20
window = "10s"
open_for = "2s"
half_open_probes = 3
[service.retry]
attempts = 2
budget = 0.2
methods = ["GET","HEAD","OPTIONS","PUT","DELETE"]
max_body = "64KiB"
statuses = [503]
[service.hold]
max_wait = "10s"
max_requests = 1000
max_bytes = "64MiB"
[service.timeouts]
connect = "1s"
response_header = "60s"
idle = "60s"
tunnel_idle = "1h"
[service.balance]
policy = "least-conn"
sticky = "off"
slow_start = "0s"
[service.failover]
auto         = true
durability   = "standby-ack"
ack_timeout  = "2s"
ack_count    = 1
gate_methods = ["POST","PUT","PATCH","DELETE"]
on_ack_timeout = "degrade"
max_lag      = "5s"
max_lag_bytes = "64MiB"
on_too_far_behind = "read-only"
fencing      = "routing"
failback     = "manual"
min_interval = "30s"
reads        = "primary"
"#;

#[test]
fn the_whole_file_is_read_and_the_defaults_are_what_the_interface_says() {
    let folder = Folder::new("whole");
    fs::write(folder.0.join("token"), "secret\n").unwrap();
    let whole = folder.load(WHOLE).unwrap();
    let minimal = folder.load(MINIMAL).unwrap();
    assert_eq!(whole.syncd_token.as_deref(), Some("secret"));
    assert_eq!(whole.state_dir, folder.0.join("state"));
    assert!(!whole.state_dir.exists(), "checking leaves nothing behind");
    assert!(whole.threads == 2 && minimal.threads >= 1);
    let (one, other) = (&whole.services[0], &minimal.services[0]);
    assert!(one.is_gated() && one.is_replicated() && !other.is_gated() && !other.is_replicated());
    assert_eq!(format!("{:?}", one.hold), format!("{:?}", other.hold));
    assert_eq!(format!("{:?}", one.health), format!("{:?}", other.health));
    assert_eq!(one.breaker, other.breaker);
    assert_eq!(
        format!("{:?}", one.timeouts),
        format!("{:?}", other.timeouts)
    );
    assert_eq!(one.retry.methods, other.retry.methods);
    assert_eq!(one.failover.gate_methods, other.failover.gate_methods);
    assert_eq!(one.failover.max_lag, other.failover.max_lag);
    let limits = |settings: &Settings| format!("{:?}", settings.listeners[0].limits);
    assert_eq!(limits(&whole), limits(&minimal));
    assert_eq!(whole.admin.bind, minimal.admin.bind);
    let endpoint = one.nodes[1].endpoint.to_string();
    assert_eq!(endpoint, "app-b.internal:5001");
    assert_eq!(one.nodes[1].id, NodeId(1));
    assert!(minimal.notes.is_empty() && minimal.access_log.is_none());
}

#[test]
fn what_is_not_built_yet_is_refused_at_its_place() {
    let folder = Folder::new("unbuilt");
    for (from, to, place) in [
        (
            "kind      = \"file\"",
            "kind = \"etcd\"",
            "coordinator.kind",
        ),
        ("\"routing\"", "\"strict\"", "service.0.failover.fencing"),
    ] {
        fs::write(folder.0.join("token"), "secret").unwrap();
        assert!(WHOLE.contains(from), "{from}");
        let error = folder.load(&WHOLE.replacen(from, to, 1)).unwrap_err();
        let wanted = format!(": {place}: ");
        assert!(error.contains(&wanted), "{to}: {error}");
        assert!(
            error.ends_with("is not built yet in this version"),
            "{error}"
        );
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}

#[test]
fn routes_have_tiers_and_standbys_may_be_read() {
    let folder = Folder::new("tiers");
    fs::write(folder.0.join("token"), "secret").unwrap();
    let with = |routes: &str| {
        let text = WHOLE.replace("\"primary\"", "\"any-caught-up\"");
        folder.load(&text.replace(
            "[service.failover]",
            &format!("{routes}\n[service.failover]"),
        ))
    };
    let route = "[[service.route]]\npath = \"/x\"\nclass = \"non-core\"\nprefer = \"warm\"";
    let settings = with(route).unwrap();
    let service = &settings.services[0];
    assert!(service.is_read_anywhere() && service.reads_standbys());
    let tier = service.tiers.find(b"/x/y");
    assert_eq!(
        (tier.worth.as_str(), tier.prefer),
        ("non-core", crate::logic::tier::Prefer::Warm)
    );
    let plain = folder.load(WHOLE).unwrap();
    assert!(!plain.services[0].reads_standbys() && plain.services[0].tiers.is_empty());
    for (from, to, words) in [
        (
            "\"/x\"",
            "\"x\"",
            "service.0.route.0.path: \"x\" is not a path",
        ),
        (
            "\"/x\"",
            "\"/x?y\"",
            "service.0.route.0.path: \"/x?y\" is not a path",
        ),
        (
            "class = \"non-core\"\nprefer = \"warm\"",
            "",
            "service.0.route.0: says nothing of its path",
        ),
    ] {
        let error = with(&route.replace(from, to)).unwrap_err();
        assert!(error.contains(words), "{error}");
    }
    let twice = with(&format!("{route}\n{route}")).unwrap_err();
    assert!(
        twice.contains("service.0.route.1.path: \"/x\" is there twice"),
        "{twice}"
    );
    let alone = format!("{MINIMAL}[service.failover]\nreads = \"any-caught-up\"\n");
    let error = folder.load(&alone).unwrap_err();
    assert!(
        error.contains("failover.reads: \"any-caught-up\" needs a syncd on every node"),
        "{error}"
    );
    let hot_hot = folder.load(&format!("{HOT_HOT}{route}\n")).unwrap_err();
    assert!(
        hot_hot.contains("route.0.prefer: \"warm\" has no meaning"),
        "{hot_hot}"
    );
}

const HOT_HOT: &str = r#"
state_dir = "state"
[[listener]]
bind = "127.0.0.1:8080"
[[service]]
name = "shop"
mode = "hot-hot"
[[service.node]]
name = "a"
url = "http://127.0.0.1:5001"
weight = 200
[[service.node]]
name = "b"
url = "http://127.0.0.1:5002"
[service.balance]
policy = "hash"
hash_key = "cookie:session"
slow_start = "30s"
"#;

#[test]
fn a_service_may_have_all_nodes_active_and_be_balanced() {
    let folder = Folder::new("hot-hot");
    let settings = folder.load(HOT_HOT).unwrap();
    let service = &settings.services[0];
    assert!(service.is_balanced() && !service.is_gated() && !service.is_replicated());
    let Balance {
        policy,
        hash_key,
        sticky,
        slow_start,
    } = &service.balance;
    assert_eq!(*sticky, None);
    assert_eq!((*policy, slow_start.as_secs()), (Policy::Hash, 30));
    assert_eq!(*hash_key, HashKey::Cookie("session".to_owned()));
    for (name, policy) in [
        ("round-robin", Policy::RoundRobin),
        ("weighted", Policy::Weighted),
        ("least-conn", Policy::LeastConn),
        ("p2c-ewma", Policy::P2cEwma),
    ] {
        let text = HOT_HOT.replace("hash_key = \"cookie:session\"\n", "");
        let settings = folder.load(&text.replace("\"hash\"", &format!("\"{name}\"")));
        assert_eq!(settings.unwrap().services[0].balance.policy, policy);
    }
    for (text, key) in [
        ("client-ip", HashKey::ClientIp),
        ("path", HashKey::Path),
        ("header:X-User", HashKey::Header("X-User".to_owned())),
    ] {
        let settings = folder.load(&HOT_HOT.replace("cookie:session", text));
        assert_eq!(settings.unwrap().services[0].balance.hash_key, key);
    }
}

#[test]
fn clients_may_stick_to_nodes_by_a_cookie_of_any_name() {
    let folder = Folder::new("sticky");
    let with =
        |keys: &str| folder.load(&HOT_HOT.replace("slow_start", &format!("{keys}\nslow_start")));
    let name = |keys: &str| with(keys).unwrap().services[0].balance.sticky.clone();
    assert_eq!(name("sticky = \"cookie\"").as_deref(), Some("hotwarm_node"));
    assert_eq!(
        name("sticky = \"cookie\"\ncookie = \"SRV\"").as_deref(),
        Some("SRV")
    );
    for (keys, words) in [
        (
            "cookie = \"SRV\"",
            "balance.cookie: only belongs to sticky = \"cookie\"",
        ),
        (
            "sticky = \"cookie\"\ncookie = \"a b\"",
            "balance.cookie: is not the name of a cookie",
        ),
    ] {
        let error = with(keys).unwrap_err();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn what_makes_no_sense_in_a_service_s_mode_is_refused_with_the_reason() {
    let folder = Folder::new("modes");
    for (from, to, words) in [
        (
            "[service.balance]",
            "[service.failover]\n[service.balance]",
            "service.0.failover: has no meaning with mode = \"hot-hot\": every node is active",
        ),
        (
            "weight = 200",
            "syncd = \"http://127.0.0.1:7001\"",
            "service.0.node.0.syncd: has no meaning with mode = \"hot-hot\": syncd copies one writer's data",
        ),
        (
            "weight = 200",
            "priority = 1",
            "service.0.node.0.priority: has no meaning with mode = \"hot-hot\"",
        ),
        (
            "\"hash\"",
            "\"weighted\"",
            "service.0.balance.hash_key: only belongs to policy = \"hash\"",
        ),
        (
            "cookie:session",
            "cookie:",
            "service.0.balance.hash_key: \"cookie:\" is none: \"client-ip\"",
        ),
        (
            "mode = \"hot-hot\"",
            "mode = \"hot-warm\"",
            "service.0.balance.policy: has no meaning with mode = \"hot-warm\": the primary has all requests",
        ),
    ] {
        let error = folder.load(&HOT_HOT.replacen(from, to, 1)).unwrap_err();
        assert!(error.contains(words), "{to}: {error}");
    }
}

#[test]
fn what_tls_to_nodes_needs_is_checked_at_its_place() {
    let folder = Folder::new("trust");
    let made = rcgen::generate_simple_self_signed(vec!["app.test".to_owned()]).unwrap();
    fs::write(folder.0.join("ca.pem"), made.cert.pem()).unwrap();
    fs::write(folder.0.join("a.key"), made.signing_key.serialize_pem()).unwrap();
    fs::write(folder.0.join("empty.pem"), "").unwrap();
    let load = |url: &str, tls: &str| {
        let text = MINIMAL.replace("http://127.0.0.1:5002", url);
        folder.load(&format!("{text}[service.tls]\n{tls}\n"))
    };
    let https = "https://app:1";
    for fine in [
        "",
        "ca = \"ca.pem\"",
        "ca = \"ca.pem\"\ncert = \"ca.pem\"\nkey = \"a.key\"\nserver_name = \"app.test\"",
        "server_name = \"127.0.0.1\"",
    ] {
        load(https, fine).unwrap_or_else(|error| panic!("{fine}: {error}"));
    }
    for (url, tls, faults) in [
        (
            "http://app:1",
            "ca = \"ca.pem\"",
            &["service.0.tls: says how to reach nodes with https://"][..],
        ),
        (https, "ca = \"empty.pem\"", &["service.0.tls.ca: "]),
        (https, "ca = \"absent.pem\"", &["service.0.tls.ca: read "]),
        (
            https,
            "cert = \"ca.pem\"",
            &["service.0.tls.cert: needs tls.key"],
        ),
        (
            https,
            "key = \"a.key\"\nserver_name = \"a b\"",
            &[
                "service.0.tls.key: needs tls.cert",
                "service.0.tls.server_name: ",
            ],
        ),
        (
            https,
            "cert = \"ca.pem\"\nkey = \"ca.pem\"",
            &["service.0.tls.key: "],
        ),
        (
            https,
            "cert = \"empty.pem\"\nkey = \"a.key\"\nca = \"ca.pem\"",
            &["service.0.tls.cert: "],
        ),
        ("https://under_score:1", "", &[]),
    ] {
        match load(url, tls) {
            Ok(_) => assert!(faults.is_empty(), "{tls}"),
            Err(error) => {
                assert_eq!(error.lines().count(), faults.len(), "{error}");
                for fault in faults {
                    assert!(error.contains(fault), "{fault}: {error}");
                }
            }
        }
    }
}

#[test]
fn certificates_that_cannot_be_used_are_refused_at_their_place() {
    let folder = Folder::new("certificates");
    fs::write(folder.0.join("token"), "secret").unwrap();
    for name in ["one", "other"] {
        let made = rcgen::generate_simple_self_signed(vec!["shop.test".to_owned()]).unwrap();
        fs::write(folder.0.join(format!("{name}.pem")), made.cert.pem()).unwrap();
        let key = made.signing_key.serialize_pem();
        fs::write(folder.0.join(format!("{name}.key")), key).unwrap();
    }
    let load = |pairs: &[(&str, &str)]| {
        let pair = |(cert, key): &(&str, &str)| format!("{{ cert = \"{cert}\", key = \"{key}\" }}");
        let pairs: Vec<_> = pairs.iter().map(pair).collect();
        let tls = format!("tls = [{}]", pairs.join(", "));
        folder.load(&WHOLE.replacen("tls            = []", &tls, 1))
    };
    let (one, other) = (("one.pem", "one.key"), ("other.pem", "other.key"));
    assert_eq!(load(&[one, other]).unwrap().listeners[0].tls.len(), 2);
    for (pairs, faults) in [
        (
            vec![one, ("absent.pem", "one.key")],
            vec![(
                "hotwarm.toml:18:56: listener.0.tls.1.cert: read absent.pem: No such file",
                "name a PEM file that hotwarm may read",
            )],
        ),
        (
            vec![("one.pem", "other.key"), ("other.key", "other.key")],
            vec![
                (
                    ": listener.0.tls.0.key: the key in other.key does not fit the certificate in one.pem",
                    "name the key that the certificate was made for",
                ),
                (
                    ": listener.0.tls.1.cert: other.key holds no certificate",
                    "it must be a PEM file",
                ),
            ],
        ),
        (
            vec![one; 101],
            vec![(
                ": listener.0.tls: 101 certificates are too many",
                "at most 100",
            )],
        ),
    ] {
        let error = load(&pairs).unwrap_err();
        assert_eq!(error.lines().count(), faults.len(), "{error}");
        for (line, (place, advice)) in error.lines().zip(faults) {
            assert!(line.contains(place) && line.contains(advice), "{line}");
        }
    }
}

#[test]
fn protocols_that_carry_requests_are_never_offered() {
    let folder = Folder::new("upgrades");
    fs::write(folder.0.join("token"), "secret").unwrap();
    let load = |list: &str| {
        let text = format!("mode  = \"hot-warm\"\nupgrades = [{list}]");
        folder.load(&WHOLE.replacen("mode  = \"hot-warm\"", &text, 1))
    };
    let offered = |settings: Settings| settings.services[0].upgrades.join(" ");
    assert_eq!(offered(folder.load(WHOLE).unwrap()), "websocket");
    assert_eq!(
        offered(load("\"WebSocket\", \"foo/1\"").unwrap()),
        "websocket foo/1"
    );
    assert_eq!(offered(load("").unwrap()), "");
    for (list, why) in [
        ("\"h2c\"", "upgrades.0: \"h2c\" is never offered"),
        (
            "\"a\", \"TLS/1.0\"",
            "upgrades.1: \"tls/1.0\" is never offered",
        ),
        ("\"a b\"", "upgrades.0: \"a b\" is not a protocol"),
        ("\"a/\"", "upgrades.0: \"a/\" is not a protocol"),
    ] {
        let error = load(list).unwrap_err();
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn impossible_combinations_are_refused_with_the_reason() {
    let folder = Folder::new("impossible");
    fs::write(folder.0.join("token"), "secret").unwrap();
    fs::write(folder.0.join("empty"), " \n").unwrap();
    for (from, to, words) in [
        (
            "connect = \"1s\"",
            "connect = \"10s\"",
            "timeouts.connect: 10s is not shorter than hold.max_wait (10s)",
        ),
        (
            "name     = \"b\"",
            "name = \"a\"",
            "the node \"a\" is there twice, first at service.0.node.0.name",
        ),
        (
            "http://app-b.internal:5001",
            "http://127.0.0.1:5001",
            "the url \"http://127.0.0.1:5001\" is there twice",
        ),
        (
            "\"*.example.com\"",
            "\"*\"",
            "hosts.2: the host \"*\" is there twice",
        ),
        (
            "\"0.0.0.0:8080\"",
            "\"0.0.0.0:9900\"",
            "admin.bind: 127.0.0.1:9900 is also a listener's",
        ),
        (
            "\"127.0.0.1:9900\"\ntoken_file = \"token\"",
            "\"0.0.0.0:9900\"",
            "admin.token_file: is required because",
        ),
        (
            "syncd    = \"http://127.0.0.1:7001\"\n",
            "",
            "has no working syncd while others have one",
        ),
        (
            "ack_count    = 1",
            "ack_count = 2",
            "ack_count: 2 standbys cannot acknowledge: 1 to 1 with 2 nodes",
        ),
        (
            "\"POST\",\"PUT\",\"PATCH\"",
            "\"GET\",\"PUT\",\"PATCH\"",
            "gate_methods.0: GET is safe",
        ),
        (
            "\"OPTIONS\",\"PUT\"",
            "\"OPTIONS\",\"POST\"",
            "retry.methods.3: POST is not idempotent",
        ),
        (
            "budget = 0.2",
            "budget = 1.5",
            "retry.budget: 1.5 is not a share",
        ),
        (
            "jitter = 0.1",
            "jitter = nan",
            "health.jitter: NaN is not a share",
        ),
        (
            "error_rate = 0.5",
            "error_rate = 0.0",
            "error_rate: 0 is not a share of failures",
        ),
        (
            "max_requests = 1000",
            "max_requests = 0",
            "hold.max_requests: must be at least 1",
        ),
        (
            "max_wait = \"10s\"",
            "max_wait = \"0s\"",
            "hold.max_wait: must be longer than nothing",
        ),
        (
            "max_connections = 10000",
            "max_connections = 0",
            "limits.max_connections: must be at least 1",
        ),
        (
            "\"64KiB\", max_headers",
            "\"1KiB\", max_headers",
            "8KiB to 1MiB is allowed",
        ),
        (
            "weight   = 100",
            "weight = 0",
            "weight: 0 is out of range: 1 to 1000",
        ),
        (
            "priority = 0",
            "priority = 256",
            "priority: 256 is out of range: 0 to 255",
        ),
        (
            "attempts = 2",
            "attempts = 0",
            "attempts: 0 is out of range",
        ),
        (
            "statuses = [503]",
            "statuses = [200]",
            "statuses.0: 200 is not an error",
        ),
        ("rise = 2", "rise = 0", "health.rise: must be at least 1"),
        ("\"200-399\"", "\"ok\"", "\"ok\" is not a list of statuses"),
        (
            "127.0.0.0/8",
            "127.0.0.1/8",
            "\"127.0.0.1/8\" is not a network",
        ),
        (
            "http://app-b.internal:5001",
            "http://app-b.internal:5001/x",
            "nothing may follow the port",
        ),
        (
            "http://10.0.0.2:7001",
            "http://10.0.0.2",
            "host and port are needed",
        ),
        (
            "syncd_token_file = \"token\"",
            "",
            "syncd_token_file is required",
        ),
        (
            "syncd_token_file = \"token\"",
            "syncd_token_file = \"empty\"",
            "empty; it must hold the token",
        ),
        (
            "syncd_token_file = \"token\"",
            "syncd_token_file = \"gone\"",
            "syncd_token_file: read gone: No such file",
        ),
        (
            "state_dir     = \"state\"",
            "state_dir = \"token/x\"",
            "state_dir: ",
        ),
        (
            "state_dir     = \"state\"",
            "state_dir = \"token\"",
            "state_dir: token is not a folder",
        ),
        (
            "path = \"-\"",
            "path = \"gone/access.log\"",
            "the folder of gone/access.log does not exist",
        ),
        (
            "kind      = \"file\"",
            "kind = \"file\"\nprefix = \"/x\"",
            "only belongs to kind = \"etcd\"",
        ),
        (
            "path = \"/healthz\"",
            "path = \"healthz\"",
            "\"healthz\" is not a path",
        ),
        (
            "path = \"/healthz\"",
            "grpc = \"\"",
            "health.status: is of no use together with health.grpc",
        ),
        (
            "path = \"/healthz\"",
            "path = \"/healthz\"\ngrpc = \"\"",
            "health.path: is of no use together with health.grpc",
        ),
        (
            "path = \"/healthz\"",
            "grpc = \"shop v1\"",
            "\"shop v1\" is not the name of a gRPC service",
        ),
        (
            "path = \"/healthz\"",
            "grpc = \"shop.v1.Orders\"",
            "health.grpc: asks in HTTP/2, which node \"b\" is not spoken to in",
        ),
        (
            "bind           = \"0.0.0.0:8080\"",
            "bind = \":8080\"",
            "\":8080\" is not ADDRESS:PORT",
        ),
    ] {
        assert!(WHOLE.contains(from), "{from}");
        let error = folder.load(&WHOLE.replacen(from, to, 1)).unwrap_err();
        assert!(error.contains(words), "{to}: {error}");
    }
}

#[test]
fn all_faults_come_at_once_with_line_and_column() {
    let folder = Folder::new("many");
    let text = MINIMAL
        .replace("127.0.0.1:8080", "nowhere")
        .replace("http://127.0.0.1:5002", "ftp://x")
        + "weight = 0\n";
    let error = folder.load(&text).unwrap_err();
    let places: Vec<_> = error
        .lines()
        .map(|line| line.split(' ').nth(1).unwrap_or_default())
        .collect();
    assert_eq!(
        places,
        [
            "listener.0.bind:",
            "service.0.node.1.url:",
            "service.0.node.1.weight:"
        ],
        "{error}"
    );
    assert!(error.starts_with("hotwarm.toml:4:8: "), "{error}");
}

#[test]
fn an_unknown_key_is_an_error_with_its_place() {
    let folder = Folder::new("unknown");
    let error = folder
        .load(&MINIMAL.replace("name = \"shop\"", "nmae = \"shop\""))
        .unwrap_err();
    assert!(
        error.starts_with("hotwarm.toml:6:1: unknown field `nmae`"),
        "{error}"
    );
    assert!(
        folder
            .load("state_dir = \"s\"")
            .unwrap_err()
            .contains("listener: there is none")
    );
}

#[test]
fn one_node_alone_is_allowed_and_remarked_on() {
    let folder = Folder::new("single");
    let end = MINIMAL.rfind("[[service.node]]").unwrap();
    let settings = folder.load(&MINIMAL[..end]).unwrap();
    assert_eq!(settings.services[0].nodes.len(), 1);
    assert!(
        settings.notes[0].contains("nobody can take over"),
        "{:?}",
        settings.notes
    );
}

#[test]
fn a_node_s_url_has_a_port_or_means_port_80_or_names_a_socket() {
    let folder = Folder::new("ports");
    let with = |url: &str| folder.load(&MINIMAL.replace("http://127.0.0.1:5002", url));
    for (url, shown) in [
        ("http://app/", "app:80"),
        ("http://[::1]:5002", "[::1]:5002"),
        ("http://localhost:1", "localhost:1"),
        ("unix:/run/app.sock", "unix:/run/app.sock"),
        ("https://app", "app:443"),
        ("h2c://app:8443", "app:8443"),
    ] {
        let settings = with(url).unwrap();
        assert_eq!(settings.services[0].nodes[1].endpoint.to_string(), shown);
    }
    for url in [
        "http://",
        "http://a:0",
        "http://a:x",
        "http://a:",
        "http://u@a:1",
        "http://[::g]:1",
        "a:1",
        "http://a b",
        "unix:run/app.sock",
        "unix:/run\\u0000/app.sock",
        "unix:/",
        "unix://",
        "",
    ] {
        assert!(with(url).is_err(), "{url}");
    }
    let long = format!("unix:/{}", "x".repeat(107));
    assert!(with(&long).unwrap_err().contains("at most 107 bytes"));
    assert!(with(&long[..long.len() - 1]).is_ok());
}

#[test]
fn who_may_speak_the_proxy_protocol_is_said_with_it() {
    let folder = Folder::new("introducers");
    let load = |keys: &str| {
        let bind = "bind = \"127.0.0.1:8080\"";
        folder.load(&MINIMAL.replace(bind, &format!("{bind}\n{keys}")))
    };
    let accept = "proxy_protocol = \"accept\"";
    let introducers = |keys: &str| load(keys).unwrap().listeners[0].introducers.clone();
    assert_eq!(introducers(""), None);
    assert_eq!(introducers(accept), Some(Vec::new()));
    let from = format!("{accept}\nproxy_protocol_from = [\"10.0.0.0/8\"]");
    assert_eq!(
        introducers(&from),
        Some(vec![Network::parse("10.0.0.0/8").unwrap()])
    );
    for (keys, why) in [
        (
            "proxy_protocol_from = [\"::1\"]",
            "proxy_protocol_from: only belongs to",
        ),
        (
            &format!("{accept}\nproxy_protocol_from = []"),
            "proxy_protocol_from: is empty",
        ),
        (
            &format!("{accept}\nproxy_protocol_from = [\"::1\", \"host\"]"),
            "listener.0.proxy_protocol_from.1: \"host\" is not a network",
        ),
    ] {
        let error = load(keys).unwrap_err();
        assert!(error.contains(why), "{error}");
    }
    let public = MINIMAL.replace(
        "bind = \"127.0.0.1:8080\"",
        &format!("bind = \"0.0.0.0:8080\"\n{accept}"),
    );
    let notes = folder.load(&public).unwrap().notes;
    assert!(notes[0].contains("proxy_protocol_from"), "{notes:?}");
}

#[test]
fn health_is_asked_for_in_http_unless_grpc_is_wanted() {
    let folder = Folder::new("question");
    let question = |text: &str| {
        folder.load(text).unwrap().services[0]
            .health
            .question
            .clone()
    };
    let Question::Get { path, statuses } = question(MINIMAL) else {
        panic!("not in HTTP")
    };
    assert_eq!(path, "/healthz");
    assert!(statuses.contain(399) && !statuses.contain(400));
    let spoken =
        MINIMAL.replace("http://", "h2c://") + "[service.health]\ngrpc = \"shop.v1.Orders\"\n";
    let asked = question(&spoken);
    assert!(
        matches!(&asked, Question::Grpc(name) if name == "shop.v1.Orders"),
        "{asked:?}"
    );
}
