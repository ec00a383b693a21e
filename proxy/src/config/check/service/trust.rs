//! What TLS towards a service's nodes relies on, and what nodes' URLs lead to.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::pki_types::ServerName;

use super::One;
use crate::config::Endpoint;
use crate::config::endpoint::{address, socket};
use crate::config::file;
use crate::tls::Pair;
use crate::tls::outgoing::{Outgoing, Trust, TrustFiles};

/// What every node of a service that speaks TLS is judged by.
pub(super) struct NodeTrust {
    trust: Trust,
    name: Option<ServerName<'static>>,
}

fn speaks_tls(url: &str) -> bool {
    url.starts_with("https://")
}

impl One<'_> {
    /// Reads what is needed, if a node speaks TLS. What is wrong is noted, and then there is nothing.
    pub(super) fn trust(&mut self, service: &file::Service) -> Option<NodeTrust> {
        let is_needed = service.node.iter().any(|node| speaks_tls(&node.url));
        let Some(tls) = &service.tls else {
            return is_needed.then(|| self.read(TrustFiles::default(), None))?;
        };
        if !is_needed {
            self.note(
                "tls",
                "says how to reach nodes with https:// in their url, and there is none; remove it (TLS of clients is the listener's)",
            );
        }
        let identity = match (&tls.cert, &tls.key) {
            (Some(cert), Some(key)) => Some(Pair {
                cert: self.check.path(cert),
                key: self.check.path(key),
            }),
            (None, None) => None,
            (Some(_), None) => {
                self.note(
                    "tls.cert",
                    "needs tls.key: a certificate is nothing without its key",
                );
                None
            }
            (None, Some(_)) => {
                self.note(
                    "tls.key",
                    "needs tls.cert: a key is nothing without its certificate",
                );
                None
            }
        };
        let name = tls.server_name.clone().map(ServerName::try_from);
        if let Some(Err(_)) = name {
            self.note(
                "tls.server_name",
                format!(
                    "{:?} is not a name: a host such as \"app.internal\", or an address",
                    tls.server_name
                ),
            );
        }
        let files = TrustFiles {
            ca: tls.ca.as_ref().map(|path| self.check.path(path)),
            identity,
        };
        self.read(files, name.and_then(Result::ok))
    }

    fn read(&mut self, files: TrustFiles, name: Option<ServerName<'static>>) -> Option<NodeTrust> {
        let (ca, has_ca) = (files.ca.clone(), files.ca.is_some());
        match Trust::read(files) {
            Ok(trust) => return Some(NodeTrust { trust, name }),
            Err(error) if error.is_about_key() => self.note("tls.key", error),
            Err(error) if has_ca && error.path() == ca.as_deref() => self.note("tls.ca", error),
            Err(error) if has_ca => self.note("tls.cert", error),
            Err(error) => self.note(
                "tls",
                format!("{error}; the system's authorities are not there: install ca-certificates, or name your own with tls.ca"),
            ),
        }
        None
    }

    /// Where a node is, by its URL.
    pub(super) fn endpoint(&mut self, key: &str, url: &str, trust: Option<&NodeTrust>) -> Endpoint {
        let nowhere = || Endpoint::Unix(PathBuf::new());
        let read = if let Some(rest) = url.strip_prefix("http://") {
            address(rest, 80).map(Endpoint::Tcp)
        } else if let Some(rest) = url.strip_prefix("h2c://") {
            address(rest, 80).map(Endpoint::H2c)
        } else if let Some(path) = url.strip_prefix("unix:") {
            socket(path).map(Endpoint::Unix)
        } else if let Some(rest) = url.strip_prefix("https://") {
            match (encrypted(rest, trust), trust) {
                (Ok(endpoint), _) => Ok(endpoint),
                // What is wrong with the files is said where they are named.
                (Err(_), None) => return nowhere(),
                (Err(why), Some(_)) => Err(why),
            }
        } else {
            Err("it begins with none of these")
        };
        read.unwrap_or_else(|why| {
            self.note(
                key,
                format!("\"{url}\" is not a node's URL: {why}; expected http://HOST:PORT, https://HOST:PORT, h2c://HOST:PORT or unix:/PATH"),
            );
            nowhere()
        })
    }
}

fn encrypted(rest: &str, trust: Option<&NodeTrust>) -> Result<Endpoint, &'static str> {
    let address = address(rest, 443)?;
    let NodeTrust { trust, name } = trust.ok_or("nobody to trust")?;
    let name = match name {
        Some(name) => name.clone(),
        None => ServerName::try_from(address.host.clone()).map_err(
            |_| "the host is not one that a certificate can be for; set tls.server_name",
        )?,
    };
    let outgoing =
        Outgoing::new(trust, name).map_err(|_| "TLS cannot be set up with these files")?;
    Ok(Endpoint::Tls(address, Arc::new(outgoing)))
}
