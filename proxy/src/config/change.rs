//! What is different between the settings in force and the next ones, and what of it cannot be changed while the program runs.

use shared::telemetry::Level;

use super::{Service, Settings};

/// What becomes of a service or a listener of the next settings. The number is its place in the former ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It stays as it is.
    Kept(usize),
    /// It has other settings.
    Changed(usize),
    /// It was not there before.
    Added,
}

/// What is different.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// What becomes of each service, in the next order.
    pub services: Vec<Next>,
    /// What becomes of each listener, in the next order.
    pub listeners: Vec<Next>,
    /// Whether finished requests are written down elsewhere, or in another form.
    pub access_log: bool,
    /// How much is logged from now on, if that is different.
    pub level: Option<Level>,
    /// Everything that changes, in words.
    pub words: Vec<String>,
}

impl Change {
    /// Compares `now` with `next`.
    ///
    /// # Errors
    /// The keys of everything that needs a restart, and why.
    pub fn between(now: &Settings, next: &Settings) -> Result<Self, Vec<(&'static str, String)>> {
        let fixed = fixed(now, next);
        if !fixed.is_empty() {
            return Err(fixed);
        }
        let mut words = Vec::new();
        let service = |settings: &Settings| -> Vec<_> {
            let token = settings.syncd_token.as_deref();
            let form = |service: &Service| match token.filter(|_| service.is_replicated()) {
                Some(token) => format!("{} {token}", service.form),
                None => service.form.clone(),
            };
            let services = settings.services.iter();
            services
                .map(|service| (service.name.to_string(), form(service)))
                .collect()
        };
        let listener = |settings: &Settings| -> Vec<_> {
            let listeners = settings.listeners.iter();
            listeners
                .map(|listener| (listener.bind.to_string(), listener.form.clone()))
                .collect()
        };
        let services = compare("service", &service(now), &service(next), &mut words);
        let listeners = compare("listener", &listener(now), &listener(next), &mut words);
        let access_log = now.access_log != next.access_log;
        let level = (now.log.level != next.log.level).then_some(next.log.level);
        for (key, is_changed) in [
            ("access_log", access_log),
            ("log.level", level.is_some()),
            ("drain_timeout", now.drain_timeout != next.drain_timeout),
            ("admin token", now.admin.token != next.admin.token),
        ] {
            if is_changed {
                words.push(format!("{key} changed"));
            }
        }
        Ok(Self {
            services,
            listeners,
            access_log,
            level,
            words,
        })
    }
}

/// What cannot be changed while the program runs.
fn fixed(now: &Settings, next: &Settings) -> Vec<(&'static str, String)> {
    let mut fixed = Vec::new();
    let mut note = |key, is_same: bool, was: String| {
        if !is_same {
            fixed.push((
                key,
                format!("is {was} in the running process; a change needs a restart"),
            ));
        }
    };
    note(
        "state_dir",
        now.state_dir == next.state_dir,
        now.state_dir.display().to_string(),
    );
    note(
        "threads",
        now.threads == next.threads,
        now.threads.to_string(),
    );
    note(
        "admin.bind",
        now.admin.bind == next.admin.bind,
        now.admin.bind.to_string(),
    );
    note(
        "log.format",
        now.log.format == next.log.format,
        format!("{:?}", now.log.format).to_lowercase(),
    );
    fixed
}

/// Finds each of `next` in `now` by its name (the first value), each of those once, and compares the forms (the second).
fn compare(
    what: &str,
    now: &[(String, String)],
    next: &[(String, String)],
    words: &mut Vec<String>,
) -> Vec<Next> {
    let mut left: Vec<_> = now.iter().enumerate().collect();
    let mut found = Vec::new();
    for (name, form) in next {
        let place = left.iter().position(|(_, (other, _))| other == name);
        found.push(match place.map(|place| left.remove(place)) {
            Some((at, (_, former))) if former == form => Next::Kept(at),
            Some((at, _)) => {
                words.push(format!("{what} {name} changed"));
                Next::Changed(at)
            }
            None => {
                words.push(format!("{what} {name} added"));
                Next::Added
            }
        });
    }
    let gone = left
        .iter()
        .map(|(_, (name, _))| format!("{what} {name} removed"));
    words.extend(gone);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(items: &[(&str, &str)]) -> Vec<(String, String)> {
        let own = |(name, form): &(&str, &str)| ((*name).to_owned(), (*form).to_owned());
        items.iter().map(own).collect()
    }

    #[test]
    fn everything_is_found_again_by_its_name_wherever_it_stands() {
        let now = list(&[("a", "1"), ("b", "1"), ("c", "1")]);
        let next = list(&[("d", "1"), ("c", "1"), ("a", "2")]);
        let mut words = Vec::new();
        let found = compare("service", &now, &next, &mut words);
        assert_eq!(found, [Next::Added, Next::Kept(2), Next::Changed(0)]);
        assert_eq!(
            words,
            ["service d added", "service a changed", "service b removed"]
        );
    }

    #[test]
    fn of_two_with_one_name_each_is_found_once() {
        let now = list(&[("127.0.0.1:0", "x"), ("127.0.0.1:0", "y")]);
        let found = compare("listener", &now, &now, &mut Vec::new());
        assert_eq!(found, [Next::Kept(0), Next::Kept(1)]);
    }
}
