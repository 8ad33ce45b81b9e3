//! Properties that hold for any bytes as webhooks, hosts and blocks of addresses: the check of the fuzz target, and of
//! the test over its corpus.
//!
//! It takes whatever bytes come and panics if a promise is broken. Not part of the product.

use std::net::IpAddr;

use http::HeaderValue;
use serde_json::Value;

use super::{
    address::{Block, HostRule, is_permitted, is_public},
    signature::signature,
    webhook::{Secret, SecretDraft, Target, Webhook, WebhookDraft},
};

/// Bytes of the longest message.
const MESSAGE_MAX: usize = 2_000;

/// Any bytes: as the list of webhooks in JSON, else line by line as URLs, hosts, blocks and addresses.
pub fn webhooks(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(written) = serde_json::from_str::<Value>(text) {
        match Webhook::drafts(written) {
            Ok(drafts) => list(&drafts),
            Err(wrong) => printable(&wrong),
        }
    }
    for line in text.lines().take(64) {
        url(line);
        places(line);
        signed(line.as_bytes(), bytes);
    }
}

fn printable(message: &str) {
    assert!(message.len() < MESSAGE_MAX, "{message}");
    assert!(!message.chars().any(char::is_control), "{message:?}");
}

fn list(drafts: &[WebhookDraft]) {
    let secrets = drafts.iter().flat_map(|draft| draft.secret.iter().chain(draft.headers.values()));
    let secrets: Vec<&str> = secrets
        .filter_map(|secret| match secret {
            SecretDraft::Inline(text) if text.len() >= 16 => Some(text.as_str()),
            _ => None,
        })
        .collect();
    let hidden = |message: &str| {
        // A name may be the same as a secret.
        let named = |secret: &str| drafts.iter().any(|draft| format!("{draft:?}").contains(secret));
        for secret in secrets.iter().filter(|secret| !named(secret)) {
            assert!(!message.contains(secret), "{message}");
        }
    };
    match Webhook::read(drafts) {
        Ok(webhooks) => {
            assert_eq!(webhooks.len(), drafts.len());
            for webhook in &webhooks {
                target(&webhook.target);
                hidden(&format!("{webhook:?}"));
                for (_, secret) in &webhook.headers {
                    if let Secret::Inline(text) = secret {
                        assert!(HeaderValue::try_from(text).is_ok());
                    }
                }
            }
        }
        Err(wrong) => {
            assert!(!wrong.is_empty());
            for wrong in &wrong {
                printable(wrong);
                hidden(wrong);
            }
        }
    }
}

/// A URL leads to one host, in one spelling, and cannot break out of the head of a request.
fn url(text: &str) {
    match Target::read(text) {
        Ok(read) => target(&read),
        Err(wrong) => printable(&wrong),
    }
}

fn target(target: &Target) {
    assert!(!target.host.is_empty() && target.port > 0 && target.path.starts_with(['/', '?']));
    let is_plain = |text: &str| !text.chars().any(|letter| letter.is_control() || letter == ' ');
    assert!(is_plain(&target.host) && is_plain(&target.path), "{:?}", target.path);
    assert!(HeaderValue::try_from(target.authority()).is_ok(), "{}", target.authority());
    let again = Target::read(&format!("{target}{}", target.path));
    assert_eq!(again.as_ref(), Ok(target), "the same host in the same words");
}

fn places(text: &str) {
    match text.parse::<Block>() {
        Ok(block) => assert_eq!(block.to_string().parse(), Ok(block)),
        Err(wrong) => printable(&wrong),
    }
    match text.parse::<HostRule>() {
        Ok(rule) => {
            assert_eq!(rule.to_string().parse(), Ok(rule.clone()));
            let own = rule.to_string();
            assert!(own.starts_with('*') || rule.permits(&own), "{own}");
        }
        Err(wrong) => printable(&wrong),
    }
    let Ok(address) = text.parse::<IpAddr>() else { return };
    if let IpAddr::V4(v4) = address {
        let spellings: [IpAddr; 2] = [
            v4.to_ipv6_mapped().into(),
            (u128::from(v4.to_bits()) | 0x64_ff9b << 96).to_be_bytes().into(),
        ];
        for other in spellings {
            assert_eq!(is_public(address), is_public(other), "{other}");
        }
    }
    let is_inner = match address {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_private() || v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local(),
    };
    assert!(!is_inner || !is_permitted(address, &[]), "{address}");
    let own: Block = address.to_string().parse().expect("an address is a block");
    assert!(own.contains(address) && is_permitted(address, &[own]));
}

/// A signature is a header's value that depends on the key, the time and the body.
fn signed(key: &[u8], body: &[u8]) {
    let value = signature(key, 7, body);
    let digits = value.strip_prefix("t=7,v1=").expect("time, then digits");
    assert!(digits.len() == 64 && digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
    assert_ne!(value.strip_prefix("t=7"), signature(key, 8, body).strip_prefix("t=8"));
    assert_ne!(value, signature(key, 7, &[body, b"."].concat()));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn webhooks_hold_over_the_corpus() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/webhooks");
        let seeds = std::fs::read_dir(folder).unwrap();
        let seeds: Vec<_> =
            seeds.map(|seed| std::fs::read(seed.unwrap().path()).unwrap()).collect();
        assert!(seeds.len() >= 10, "only {} seeds", seeds.len());
        for seed in &seeds {
            webhooks(seed);
        }
    }

    proptest! {
        #[test]
        fn any_url_is_read_or_refused(text in "(https?|ftp)?:?/{0,2}[a-z0-9.:@%\\[\\]\\\\*#?/ \n-]{0,24}") {
            webhooks(text.as_bytes());
        }

        #[test]
        fn any_address_is_judged_alike_in_all_spellings(text in "([0-9]{1,3}\\.){3}[0-9]{1,3}(/[0-9]{1,3})?|[0-9a-f:]{2,20}(/[0-9]{1,3})?") {
            webhooks(text.as_bytes());
        }
    }
}
