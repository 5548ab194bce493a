//! Which exposition format a client prefers, by its `Accept` header (RFC 9110, 12.5.1).

/// An exposition format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics text 1.0.
    OpenMetrics,
    /// Prometheus text 0.0.4.
    Prometheus,
}

impl Format {
    /// Its media type.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// The one that a client prefers: OpenMetrics only if it is named, and not less welcome than the other.
    pub fn accepted<'a>(headers: impl IntoIterator<Item = &'a str>) -> Self {
        let ranges: Vec<Range<'_>> =
            headers.into_iter().flat_map(|header| header.split(',')).map(Range::parse).collect();
        let quality = |media: &str| {
            let named = ranges.iter().filter(|range| range.media.eq_ignore_ascii_case(media));
            named.filter(|range| range.is_known_version).map(|range| range.quality).reduce(f64::max)
        };
        let open_metrics = quality("application/openmetrics-text").unwrap_or(0.0);
        if open_metrics > 0.0 && open_metrics >= quality("text/plain").unwrap_or(0.0) {
            Self::OpenMetrics
        } else {
            Self::Prometheus
        }
    }
}

/// One media range of the header.
struct Range<'a> {
    media: &'a str,
    is_known_version: bool,
    quality: f64,
}

impl<'a> Range<'a> {
    fn parse(text: &'a str) -> Self {
        let mut parts = text.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default();
        let (mut is_known_version, mut quality) = (true, 1.0);
        for (name, value) in parts.filter_map(|part| part.split_once('=')) {
            match name.trim() {
                "q" => quality = value.trim().parse().unwrap_or(0.0),
                "version" => {
                    is_known_version = ["0.0.1", "0.0.4", "1.0.0"].contains(&value.trim().trim_matches('"'));
                }
                _ => {}
            }
        }
        Self { media, is_known_version, quality }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_gets_what_it_prefers() {
        // Prometheus 3.x with its defaults.
        let prometheus = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
                          application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;q=0.4,\
                          text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        assert_eq!(Format::accepted([prometheus]), Format::OpenMetrics);
        assert_eq!(Format::accepted([]), Format::Prometheus);
        assert_eq!(Format::accepted(["*/*"]), Format::Prometheus, "curl");
        assert_eq!(Format::accepted(["text/html,*/*;q=0.8"]), Format::Prometheus, "a browser");
        assert_eq!(Format::accepted(["text/plain", "application/openmetrics-text"]), Format::OpenMetrics);
        let less = "text/plain, application/openmetrics-text;q=0.5";
        assert_eq!(Format::accepted([less]), Format::Prometheus);
        assert_eq!(Format::accepted(["application/openmetrics-text;q=0"]), Format::Prometheus);
        assert_eq!(Format::accepted(["application/openmetrics-text;version=2.0.0"]), Format::Prometheus);
        assert_eq!(Format::accepted([";;==,,q=,\u{fffd}"]), Format::Prometheus);
    }
}
