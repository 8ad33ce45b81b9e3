//! The format that a scraper likes best, by its `Accept` header.
//!
//! Prometheus names what it reads with falling weights, protobuf first where it stores native histograms
//! (Prometheus, "Content negotiation"). Always true:
//! - The highest weight wins, the first of equals; a weight of 0 refuses.
//! - Who accepts nothing that is written here gets text, as Prometheus' own clients do.

/// A format of a page of metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Prometheus' text format 0.0.4.
    Text,
    /// `OpenMetrics` 1.0.
    OpenMetrics,
    /// Length-delimited messages `io.prometheus.client.MetricFamily`.
    Protobuf,
}

impl Format {
    /// The format for the values of the `Accept` headers of a request, in their order.
    pub fn accepted<'a>(headers: impl IntoIterator<Item = &'a str>) -> Self {
        let mut best = (Self::Text, 0.0);
        for range in headers.into_iter().flat_map(|header| header.split(',')) {
            if let Some((format, weight)) = Self::of_range(range)
                && weight > best.1
            {
                best = (format, weight);
            }
        }
        best.0
    }

    /// The content type of a page in this format.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Protobuf => {
                "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"
            }
        }
    }

    /// The format that a media range stands for, and its weight; `None` for one that is not written here.
    fn of_range(range: &str) -> Option<(Self, f64)> {
        let mut parts = range.split(';').map(str::trim);
        let kind = parts.next()?.to_ascii_lowercase();
        let (mut weight, mut version, mut proto, mut encoding) = (1.0, None, None, None);
        for (name, value) in parts.filter_map(|part| part.split_once('=')) {
            let value = value.trim().trim_matches('"');
            match name.trim().to_ascii_lowercase().as_str() {
                "q" => weight = value.parse::<f64>().ok().filter(|q| (0.0..=1.0).contains(q))?,
                "version" => version = Some(value),
                "proto" => proto = Some(value),
                "encoding" => encoding = Some(value),
                _ => {}
            }
        }
        let is = |asked: Option<&str>, ours| asked.is_none_or(|asked| asked == ours);
        let format = match kind.as_str() {
            "application/vnd.google.protobuf"
                if proto == Some("io.prometheus.client.MetricFamily")
                    && encoding == Some("delimited") =>
            {
                Self::Protobuf
            }
            "application/openmetrics-text" if is(version, "1.0.0") => Self::OpenMetrics,
            "text/plain" if is(version, "0.0.4") => Self::Text,
            "text/*" | "*/*" => Self::Text,
            _ => return None,
        };
        Some((format, weight))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROTOBUF: &str = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited";

    #[track_caller]
    fn check(accept: &[&str], expected: Format) {
        assert_eq!(Format::accepted(accept.iter().copied()), expected, "{accept:?}");
    }

    #[test]
    fn prometheus_gets_what_it_likes_best() {
        let text = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                    text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        check(&[text], Format::OpenMetrics);
        let native = format!(
            "{PROTOBUF},application/openmetrics-text;version=1.0.0;q=0.8,\
             application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
        );
        check(&[&native], Format::Protobuf);
        let third = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
                     application/openmetrics-text;version=0.0.1;q=0.5,\
                     text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        check(&[third], Format::OpenMetrics);
        let third_native = format!("{PROTOBUF};q=0.7,{third}");
        check(&[&third_native], Format::Protobuf);
        let text_first = "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;version=0.0.4;q=0.5,\
                          application/openmetrics-text;version=1.0.0;q=0.4,*/*;q=0.1";
        check(&[text_first], Format::Text);
    }

    #[test]
    fn others_get_text() {
        check(&[], Format::Text);
        check(&[""], Format::Text);
        check(&["*/*"], Format::Text);
        check(&["text/html,application/xhtml+xml,*/*;q=0.8"], Format::Text);
        check(&["application/json"], Format::Text);
        check(&["application/openmetrics-text;version=0.0.1"], Format::Text);
        check(&["application/vnd.google.protobuf"], Format::Text);
        check(&["application/openmetrics-text;q=nonsense"], Format::Text);
    }

    #[test]
    fn weights_order_and_zero_refuses() {
        check(&["text/plain;q=0.2", "application/openmetrics-text; q=0.3"], Format::OpenMetrics);
        check(&["application/openmetrics-text;q=0, text/plain;q=0.1"], Format::Text);
        check(&["text/plain, application/openmetrics-text"], Format::Text);
        check(
            &["Application/OpenMetrics-Text; Version=\"1.0.0\"; Q=0.9, */*;q=0.8"],
            Format::OpenMetrics,
        );
    }
}
