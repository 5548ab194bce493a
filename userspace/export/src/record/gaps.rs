//! Records of what was lost behind the daemon: gaps, as its own are.

use kwitness_api::text::escape;
use opentelemetry_proto::tonic::logs::v1::{LogRecord, SeverityNumber};

use super::attributes::{Attributes, any_text};
use super::{Mapping, kinds, record};
use crate::queue::{Progress, Record, Refused};

impl Mapping {
    /// Those of each kind of loss that the collector does not know of, found at that time in nanoseconds since the Unix epoch.
    pub fn gaps(&self, progress: &Progress, observed: u64) -> Vec<Record> {
        let refused = progress.refused.iter().map(|refused| self.refused(refused, observed));
        let unaccounted = progress.unaccounted.iter().map(|last| {
            let mut attributes = Attributes::default();
            attributes.text("log.record.uid", &format!("{}/1-{}/state_missing", last.epoch, last.seq));
            attributes.text("kwitness.epoch", &last.epoch);
            attributes.text("kwitness.gap.cause", "state_missing");
            attributes.number("kwitness.gap.first_seq", 1u64);
            attributes.number("kwitness.gap.last_seq", last.seq);
            let body = format!(
                "{} events are older than the journal, and no state file says whether they were exported",
                last.seq
            );
            self.gap(attributes, &body, observed)
        });
        let lost = (progress.kubernetes_lost > 0).then(|| {
            let (lost, at) = (progress.kubernetes_lost, progress.position.clone().unwrap_or_default());
            let mut attributes = Attributes::default();
            let uid = format!("{}/{}/kubernetes_events_lost/{lost}", at.epoch, at.seq);
            attributes.text("log.record.uid", &uid);
            attributes.text("kwitness.gap.cause", "kubernetes_events_lost");
            attributes.counts("kwitness.gap.lost", [(&"kubernetes_event".to_owned(), &lost)].into_iter());
            self.gap(attributes, &format!("{lost} Kubernetes Events were not created"), observed)
        });
        refused.chain(unaccounted).chain(lost).collect()
    }

    fn refused(&self, Refused { epoch, first, last, records, reason }: &Refused, observed: u64) -> Record {
        let mut attributes = Attributes::default();
        attributes.text("log.record.uid", &format!("{epoch}/{first}-{last}/refused"));
        attributes.text("kwitness.epoch", epoch);
        attributes.text("kwitness.gap.cause", "collector_refused");
        attributes.counts("kwitness.gap.lost", [(&"event".to_owned(), records)].into_iter());
        attributes.number("kwitness.gap.first_seq", *first);
        attributes.number("kwitness.gap.last_seq", *last);
        let body = format!("the collector refused {records} records: {}", escape(reason));
        self.gap(attributes, &body, observed)
    }

    fn gap(&self, attributes: Attributes, body: &str, observed: u64) -> Record {
        let log = LogRecord {
            time_unix_nano: observed,
            observed_time_unix_nano: observed,
            severity_number: SeverityNumber::Warn.into(),
            body: Some(any_text(body)),
            attributes: attributes.into_inner(),
            event_name: kinds::GAP.to_owned(),
            ..Default::default()
        };
        record(self.node_resource(), log, None)
    }
}
