//! Records of what was lost behind the daemon: gaps, as its own are.

use kwitness_api::text::escape;
use opentelemetry_proto::tonic::logs::v1::{LogRecord, SeverityNumber};

use super::attributes::{Attributes, any_text};
use super::{Mapping, kinds, record};
use crate::queue::{Progress, Record, Refused};

impl Mapping {
    /// Those of each kind of loss that the collector does not know of, found at that time in nanoseconds since the Unix epoch.
    pub fn gaps(&self, progress: &Progress, observed: u64) -> Vec<Record> {
        let refused = progress.refused.iter().flat_map(|refused| self.refused(refused, observed));
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

    /// A gap; if the daemon's epoch changed meanwhile, one to the end of the first epoch, with all that was refused, and one from the
    /// beginning of the last: numbers of two epochs do not compare.
    fn refused(&self, Refused { first, last, records, reason }: &Refused, observed: u64) -> Vec<Record> {
        let body = format!("the collector refused {records} records: {}", escape(reason));
        let gap = |epoch: &str, from: u64, to: Option<u64>, lost: Option<&u64>| {
            let mut attributes = Attributes::default();
            let end = to.map_or_else(String::new, |to| to.to_string());
            attributes.text("log.record.uid", &format!("{epoch}/{from}-{end}/refused"));
            attributes.text("kwitness.epoch", epoch);
            attributes.text("kwitness.gap.cause", "collector_refused");
            let kind = "event".to_owned();
            attributes.counts("kwitness.gap.lost", lost.map(|records| (&kind, records)).into_iter());
            attributes.number("kwitness.gap.first_seq", from);
            attributes.known_number("kwitness.gap.last_seq", to);
            self.gap(attributes, &body, observed)
        };
        if first.epoch == last.epoch {
            vec![gap(&first.epoch, first.seq, Some(last.seq), Some(records))]
        } else {
            vec![gap(&first.epoch, first.seq, None, Some(records)), gap(&last.epoch, 1, Some(last.seq), None)]
        }
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
