//! An error as a page: what it means for the person who sees it, and what to tell whoever they ask for help. Nothing about
//! what is behind the proxy.

use std::fmt::Write;

use http::StatusCode;

use crate::exchange::{Fault, Reach, Unconfirmed};

const STYLE: &str = ":root{color-scheme:light dark}body{font:1rem/1.5 system-ui,sans-serif;max-width:34rem;\
margin:15vh auto 0;padding:0 1.5rem;color:#222;background:#fff}h1{font-size:1.4rem;margin:0 0 .75rem}\
p{margin:.5rem 0}small{color:#666}code{overflow-wrap:anywhere}\
@media(prefers-color-scheme:dark){body{color:#ddd;background:#16181c}small{color:#999}}";

/// What the page may load and run: nothing, but for its own style.
pub const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What a fault means for somebody who only wanted to use a site.
fn meaning(fault: &Fault) -> &'static str {
    const TAKEN: &str =
        "The site cannot take requests at the moment. This usually passes within seconds.";
    const UNSENT: &str = "The site could not be reached, so your request was not carried out. Please try again in a moment.";
    const UNKNOWN: &str = "The site did not answer as it should. Your request may or may not have been carried out: \
please check before you send anything a second time.";
    const ODD: &str = "The request could not be understood, so it was not carried out.";
    match fault {
        Fault::Unavailable(_) => TAKEN,
        Fault::NoService => "There is no site by this name here.",
        Fault::Upstream(fault) => match fault.reach {
            Reach::Connect | Reach::Unsent | Reach::Declined => UNSENT,
            Reach::Sent | Reach::Head | Reach::Body => UNKNOWN,
        },
        Fault::Unconfirmed(Unconfirmed::Unreplicated | Unconfirmed::Outdated) => UNKNOWN,
        Fault::HeadTooSlow | Fault::BodyTooSlow | Fault::BodyBroken => {
            "The request did not arrive completely. Please check the connection and try again."
        }
        Fault::Request { .. } => ODD,
    }
}

/// Makes the page. `wait` is how many seconds to wait before another try.
#[must_use]
pub fn page(fault: &Fault, status: StatusCode, id: Option<&[u8]>, wait: Option<&str>) -> String {
    let title = status.canonical_reason().unwrap_or("Error");
    let code = status.as_u16();
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
<meta name=\"robots\" content=\"noindex\"><title>{code} {title}</title>\n<style>{STYLE}</style></head>\n<body>\n<main>\n\
<h1>{title}</h1>\n<p>{}</p>\n",
        meaning(fault)
    );
    if let Some(wait) = wait {
        let unit = if wait == "1" { "second" } else { "seconds" };
        let _ = writeln!(page, "<p>Please try again in {wait} {unit}.</p>");
    }
    let _ = write!(page, "<p><small>Status {code}");
    if let Some(id) = id {
        page.push_str(", request <code>");
        escape(&mut page, id);
        page.push_str("</code>");
    }
    page.push_str("</small></p>\n</main>\n</body>\n</html>\n");
    page
}

/// Text that is neither a tag nor an entity, whatever a proxy before us took for an id.
fn escape(out: &mut String, text: &[u8]) {
    for byte in text {
        match byte {
            b'<' => out.push_str("&lt;"),
            b'>' => out.push_str("&gt;"),
            b'&' => out.push_str("&amp;"),
            b'"' => out.push_str("&quot;"),
            b'\'' => out.push_str("&#39;"),
            b' '..=b'~' => out.push(char::from(*byte)),
            _ => out.push('?'),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::{Cause, UpstreamFault};
    use crate::logic::NodeId;

    #[test]
    fn a_page_says_what_it_means_and_nothing_of_what_is_behind() {
        let fault = |reach| {
            Fault::Upstream(UpstreamFault {
                node: NodeId(0),
                reach,
                cause: Cause::Refused,
            })
        };
        let status = StatusCode::BAD_GATEWAY;
        let text = page(&fault(Reach::Sent), status, Some(b"<a&\"'\xff>"), None);
        assert!(text.contains("<title>502 Bad Gateway</title>"), "{text}");
        assert!(
            text.contains("<code>&lt;a&amp;&quot;&#39;?&gt;</code>"),
            "{text}"
        );
        assert!(text.contains("check before you send anything a second time"));
        assert!(!text.contains("refused") && !text.contains("try again in"));
        let text = page(&fault(Reach::Connect), status, None, Some("1"));
        assert!(text.contains("was not carried out") && text.contains("again in 1 second."));
        assert!(!text.contains("request <code>"));
    }
}
