//! In which form a client wants to hear of an error.

use crate::exchange::Head;

/// The form of an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wants {
    /// For programs: RFC 9457.
    Problem,
    /// For people, as a page.
    Page,
    /// In the fields of a gRPC response, with this media type.
    Grpc(Box<str>),
}

impl Wants {
    /// By what it says of itself.
    #[must_use]
    pub fn of(head: &Head) -> Self {
        let all = |wanted: &'static str| {
            let fields = head.fields.iter();
            fields
                .filter(move |(_, name, _)| name.eq_ignore_ascii_case(wanted.as_bytes()))
                .map(|(_, _, value)| value)
        };
        if let Some(kind) = all("content-type").find_map(grpc) {
            return Self::Grpc(kind.into());
        }
        let mut preference = Preference::default();
        for value in all("accept") {
            value
                .split(|byte| *byte == b',')
                .for_each(|range| preference.hear(range));
        }
        if preference.prefers_page() {
            Self::Page
        } else {
            Self::Problem
        }
    }
}

/// The media type, if it is one of gRPC's.
fn grpc(value: &[u8]) -> Option<&str> {
    const NAME: &str = "application/grpc";
    let text = std::str::from_utf8(value).ok()?;
    let rest = text.get(NAME.len()..)?;
    let known = text[..NAME.len()].eq_ignore_ascii_case(NAME);
    (known && (rest.is_empty() || rest.starts_with(['+', ';', '-']))).then_some(text)
}

/// Qualities in thousandths (RFC 9110 §12.4.2); `None` if it was not named.
#[derive(Debug, Default)]
struct Preference {
    page: Option<u16>,
    problem: Option<u16>,
    any: Option<u16>,
}

impl Preference {
    fn hear(&mut self, range: &[u8]) {
        let mut parts = range.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
        let name = parts.next().unwrap_or_default().to_ascii_lowercase();
        let quality = parts.find_map(|part| {
            let (name, value) = part.split_at_checked(2)?;
            name.eq_ignore_ascii_case(b"q=").then(|| quality(value))
        });
        let quality = quality.unwrap_or(1000);
        let place = match &*name {
            b"text/html" | b"application/xhtml+xml" => &mut self.page,
            b"application/problem+json" | b"application/json" => &mut self.problem,
            b"*/*" | b"application/*" => &mut self.any,
            _ => return,
        };
        *place = (*place).max(Some(quality));
    }

    /// Only who asks for pages by name is a person.
    fn prefers_page(&self) -> bool {
        let problem = self.problem.or(self.any).unwrap_or(0);
        self.page.is_some_and(|page| page > problem)
    }
}

/// `0` to `1` with at most three digits behind the point; anything else counts as nothing.
fn quality(text: &[u8]) -> u16 {
    let (whole, part) = match text.split_first() {
        Some((whole, [])) => (*whole, &[][..]),
        Some((whole, [b'.', part @ ..])) if part.len() <= 3 => (*whole, part),
        _ => return 0,
    };
    if !part.iter().all(u8::is_ascii_digit) {
        return 0;
    }
    let digit = |at: usize| u16::from(part.get(at).map_or(0, |byte| byte - b'0'));
    let part = digit(0) * 100 + digit(1) * 10 + digit(2);
    match whole {
        b'0' => part,
        b'1' if part == 0 => 1000,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wants(lines: &str) -> Wants {
        Wants::of(&Head::for_test("GET", "/", lines))
    }

    #[test]
    fn browsers_get_a_page_and_programs_a_problem() {
        let chrome = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8";
        for (accept, is_page) in [
            (chrome, true),
            ("text/html", true),
            ("TEXT/HTML;level=1;Q=0.5, application/json;q=0.4", true),
            ("*/*;q=0.1, text/html;q=0.2", true),
            ("*/*", false),
            ("", false),
            ("text/*", false),
            ("application/json, text/plain, */*", false),
            ("text/html, application/json", false),
            ("text/html;q=0.5, */*;q=0.5", false),
            ("text/html;q=0", false),
            ("text/html;q=2", false),
            ("text/html;q=0.0001", false),
            ("text/html;q=-1", false),
            ("text/html;q=", false),
        ] {
            let page = wants(&format!("accept: {accept}\r\n")) == Wants::Page;
            assert_eq!(page, is_page, "{accept}");
        }
        assert_eq!(
            wants("Accept: */*;q=0.1\r\nACCEPT: text/html\r\n"),
            Wants::Page
        );
        assert_eq!(wants(""), Wants::Problem);
    }

    #[test]
    fn grpc_is_known_by_its_media_type() {
        for kind in [
            "application/grpc",
            "Application/gRPC+proto",
            "application/grpc-web;x",
        ] {
            let wants = wants(&format!("content-type: {kind}\r\naccept: text/html\r\n"));
            assert_eq!(wants, Wants::Grpc(kind.into()));
        }
        for kind in ["application/grpcx", "application/gr", "text/plain", "é"] {
            assert_eq!(wants(&format!("content-type: {kind}\r\n")), Wants::Problem);
        }
    }
}
